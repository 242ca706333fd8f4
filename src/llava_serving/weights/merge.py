"""The arithmetic of a LLaVA delta (LLaVA@8959d5c llava/model/apply_delta.py:12-36), one tensor at a time.

Three rules, by the delta's names:
  not in the base    a projector tensor, kept as stored
  same shape         base + delta
  more rows          embed_tokens or lm_head: the base is added to its own rows; the added tokens' rows are kept
The sum is rounded to float16, as the authors' was, whatever dtype the model then runs in.
"""

from collections.abc import Iterator

import torch

from ..errors import StartupError
from .checkpoint import Checkpoint

PROJECTOR = ("model.mm_projector.weight", "model.mm_projector.bias")
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
WRONG_BASE = "the base must be the original LLaMA (not Vicuna, not Llama 2) of the delta's size, in Hugging Face layout"


def merged_tensors(
    base: Checkpoint, delta: Checkpoint, text_vocab_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of the merged language model and projector under the delta's name: float16, on `device`.

    One tensor of each checkpoint is held at a time. `text_vocab_size` is the number of the tokenizer's own tokens, and
    so of the base's rows. Raises StartupError if the two do not belong together.
    """
    unused = {name for name in base.names if not is_recomputed(name)}
    for name in delta.names:
        if is_recomputed(name):
            continue
        added = delta.tensor(name).to(device, torch.float16)
        if name in base:
            unused.discard(name)
            original = base.tensor(name).to(device, torch.float16)
            if name in VOCABULARY and len(original) != text_vocab_size:
                raise StartupError(
                    f"{name} has {len(original)} rows in the base, and the tokenizer has {text_vocab_size} tokens; "
                    f"{WRONG_BASE}"
                )
            yield name, _sum(name, original, added)
        elif name in PROJECTOR:
            yield name, added.clone()
        else:
            raise StartupError(f"the delta holds {name}, which the base lacks; {WRONG_BASE}")
    if unused:
        raise StartupError(
            f"the base holds {len(unused)} tensors that the delta lacks, {min(unused)} among them; {WRONG_BASE}"
        )


def is_recomputed(name: str) -> bool:
    """Rotary frequencies are computed from the config; in a delta they are the difference of two equals, zero."""
    return name.endswith("rotary_emb.inv_freq")


def _sum(name: str, base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    if base.shape == delta.shape:
        return base + delta
    rows = base.shape[0]
    if name not in VOCABULARY or base.shape[1:] != delta.shape[1:] or rows > delta.shape[0]:
        raise StartupError(
            f"{name} has shape {tuple(base.shape)} in the base and {tuple(delta.shape)} in the delta; {WRONG_BASE}"
        )
    merged = delta.clone()
    merged[:rows] += base
    return merged
