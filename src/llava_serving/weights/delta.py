"""The arithmetic of a LLaVA delta (LLaVA@8959d5c llava/model/apply_delta.py:12-36), on tensors still in their files.

Three rules, by the delta's names:
  not in the base    a projector tensor, kept as stored
  same shape         base + delta
  more rows          embed_tokens or lm_head: the base is added to its own rows; the added tokens' rows are kept
Every term and the sum are rounded to float16, as the authors' were, whatever dtype the model then runs in. CLIP is
rounded too: v0 ran it in float16 (LLaVA@15f31eb llava/model/llava.py:70). So a model gives the same answers, to the
bit, from its parts and from its merged folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import StartupError
from .storage.lazy_tensor import LazyTensor, num_bytes, num_rows
from .tensor_names import EMBEDDING, LM_HEAD, PROJECTOR

VOCABULARY_TENSORS = (EMBEDDING, LM_HEAD)
WRONG_BASE = "the base must be the original LLaMA (not Vicuna, not Llama 2) of the delta's size"


@dataclass(frozen=True)
class MergedTensor:
    """A tensor of the merged model: `stored`, plus `base` on as many rows as `base` has.

    `in_float16` says that the sum is rounded to float16. A folder that was merged before keeps its numbers.
    """

    stored: LazyTensor
    base: LazyTensor | None = None
    in_float16: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def terms(self) -> list[LazyTensor]:
        """The tensors in files whose sum this is: `stored`, then `base` if there is one."""
        return [self.stored] if self.base is None else [self.stored, self.base]

    @property
    def num_stored_bytes(self) -> int:
        """The bytes in the files, of all terms."""
        return sum(map(num_bytes, self.terms))

    def read(self, start: int, stop: int, buffers: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns rows `start` to `stop` of `stored`, and as many of them as `base` has: None if it has none.

        The results may be views of `buffers`, one for each term. Raises StartupError if a file cannot be read.
        """
        stored_rows = self.stored.read(start, stop, buffers[0])
        if self.base is None or start >= num_rows(self.base):
            return stored_rows, None
        return stored_rows, self.base.read(start, min(stop, num_rows(self.base)), buffers[1])

    def merge_rows(self, stored: torch.Tensor, base: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        """Returns rows of the sum from the same rows of both terms, on their device. May overwrite `stored`."""
        if not self.in_float16:
            return stored.to(dtype)
        merged = stored.to(torch.float16)
        if base is not None:
            merged[: len(base)] += base.to(torch.float16)
        return merged.to(dtype)


def apply_delta(
    base: Mapping[str, LazyTensor], delta: Mapping[str, LazyTensor], text_vocab_size: int
) -> dict[str, MergedTensor]:
    """Returns each tensor of the merged language model and projector under the delta's name.

    `text_vocab_size` is the number of the tokenizer's own tokens, and so of the base's rows. Raises StartupError if
    base and delta are incompatible.
    """
    merged: dict[str, MergedTensor] = {}
    for name, difference in delta.items():
        if is_recomputed(name):
            continue
        if name in base:
            _check_base_shape(name, base[name].shape, difference.shape, text_vocab_size)
            merged[name] = MergedTensor(difference, base[name])
        elif name in PROJECTOR:
            merged[name] = MergedTensor(difference)
        else:
            raise StartupError(f"the delta holds {name}, which the base lacks; {WRONG_BASE}")
    unused = sorted(name for name in base if name not in merged and not is_recomputed(name))
    if unused:
        raise StartupError(
            f"the base holds {len(unused)} tensors that the delta lacks, {unused[0]} among them; {WRONG_BASE}"
        )
    return merged


def in_file_order(tensors: Mapping[str, MergedTensor]) -> dict[str, MergedTensor]:
    """Returns the tensors in the order in which files hold them, so that reading is sequential."""
    return dict(sorted(tensors.items(), key=lambda item: item[1].stored.location))


def is_recomputed(name: str) -> bool:
    """Says whether a tensor holds rotary frequencies. They are computed from the config; a delta holds zeros."""
    return name.endswith("rotary_emb.inv_freq")


def _check_base_shape(name: str, base: tuple[int, ...], delta: tuple[int, ...], text_vocab_size: int) -> None:
    if name in VOCABULARY_TENSORS and base[0] != text_vocab_size:
        raise StartupError(
            f"{name} has {base[0]} rows in the base, and the tokenizer has {text_vocab_size} tokens; {WRONG_BASE}"
        )
    if base != delta and not (name in VOCABULARY_TENSORS and base[1:] == delta[1:] and base[0] <= delta[0]):
        raise StartupError(f"{name} has shape {base} in the base and {delta} in the delta; {WRONG_BASE}")
