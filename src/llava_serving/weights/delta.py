"""The arithmetic of a LLaVA delta (LLaVA@8959d5c llava/model/apply_delta.py:12-36), on tensors still in their files.

Three rules, by the delta's names:
  not in the base    a projector tensor, kept as stored
  same shape         base + delta
  more rows          embed_tokens or lm_head: the base is added to its own rows; the added tokens' rows are kept
The sum is rounded to float16, as the authors' was, whatever dtype the model then runs in.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import StartupError
from .storage.stored_tensor import Tensor, num_bytes

PROJECTOR = ("model.mm_projector.weight", "model.mm_projector.bias")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
WRONG_BASE = "the base must be the original LLaMA (not Vicuna, not Llama 2) of the delta's size"


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the merged model: `first`, plus `second` on as many rows as that has."""

    first: Tensor
    second: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Of its terms, as stored."""
        return num_bytes(self.first) + (num_bytes(self.second) if self.second is not None else 0)

    def rows(self, first: torch.Tensor, second: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the sum from the same rows of its terms, on their device; may overwrite `first`."""
        if second is None:
            return first.to(dtype)
        first = first.to(torch.float16)
        first[: len(second)] += second.to(torch.float16)
        return first.to(dtype)


def apply_delta(
    base: Mapping[str, Tensor], delta: Mapping[str, Tensor], text_vocab_size: int
) -> dict[str, MergedTensor]:
    """Each tensor of the merged language model and projector under the delta's name.

    `text_vocab_size` is the number of the tokenizer's own tokens, and so of the base's rows. Raises StartupError if the
    two do not belong together.
    """
    merged_tensors: dict[str, MergedTensor] = {}
    for name, difference in delta.items():
        if is_recomputed(name):
            continue
        if name in base:
            _check_shapes(name, base[name].shape, difference.shape, text_vocab_size)
            merged_tensors[name] = MergedTensor(difference, base[name])
        elif name in PROJECTOR:
            merged_tensors[name] = MergedTensor(difference)
        else:
            raise StartupError(f"the delta holds {name}, which the base lacks; {WRONG_BASE}")
    unused = sorted(name for name in base if name not in merged_tensors and not is_recomputed(name))
    if unused:
        raise StartupError(
            f"the base holds {len(unused)} tensors that the delta lacks, {unused[0]} among them; {WRONG_BASE}"
        )
    return merged_tensors


def is_recomputed(name: str) -> bool:
    """Rotary frequencies are computed from the config; in a delta they are the difference of two equals, zero."""
    return name.endswith("rotary_emb.inv_freq")


def _check_shapes(name: str, base: tuple[int, ...], delta: tuple[int, ...], text_vocab_size: int) -> None:
    if name in VOCABULARY and base[0] != text_vocab_size:
        raise StartupError(
            f"{name} has {base[0]} rows in the base, and the tokenizer has {text_vocab_size} tokens; {WRONG_BASE}"
        )
    if base != delta and not (name in VOCABULARY and base[1:] == delta[1:] and base[0] <= delta[0]):
        raise StartupError(f"{name} has shape {base} in the base and {delta} in the delta; {WRONG_BASE}")
