"""Linear maps of one input whose weights lie one after the other in one memory, so that one product takes them all.

Memory for them is made before they are read. Nothing is joined afterwards, which on a GPU would need a layer's weights
twice and leave the allocator holding what the parts had.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

SIBLINGS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


def siblings(layer: nn.Module) -> Iterator[list[Any]]:
    """The linear maps of a LLaMA layer that read the same input, in the order in which they lie."""
    for parent, names in SIBLINGS:
        yield [layer.get_submodule(f"{parent}.{name}") for name in names]


def allocate(linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> None:
    """Gives the maps' weights, and their biases if they have any, memory one after the other."""
    for kind in ("weight", "bias"):
        parts = [getattr(linear, kind) for linear in linears]
        if parts[0] is not None:
            for linear, memory in zip(linears, one_after_another(parts, device, dtype), strict=True):
                setattr(linear, kind, nn.Parameter(memory, requires_grad=False))


def one_after_another(
    parts: Sequence[torch.Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """New memory of the parts' shapes, which differ along dimension 0 at most."""
    rows = [len(part) for part in parts]
    return torch.split_with_sizes(torch.empty(sum(rows), *parts[0].shape[1:], dtype=dtype, device=device), rows)


def joined(parts: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of the maps as one map's; the maps' own are views of them.

    Where they lie one after the other, as `allocate` made them, nothing is copied.
    """
    weight = as_one([part.weight.detach() for part in parts])
    biases = [part.bias.detach() for part in parts if part.bias is not None]
    bias = as_one(biases) if biases else None
    rows = [part.out_features for part in parts]
    for part, view in zip(parts, torch.split_with_sizes(weight, rows), strict=True):
        part.weight.data = view
    if bias is not None:
        for part, view in zip(parts, torch.split_with_sizes(bias, rows), strict=True):
            part.bias.data = view
    return weight, bias


def as_one(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The parts along dimension 0: a view where they lie one after the other in one memory, else a copy."""
    if not _one_after_another(parts):
        return torch.cat(list(parts))
    first = parts[0]
    return first.as_strided((sum(len(part) for part in parts), *first.shape[1:]), first.stride())


def _one_after_another(parts: Sequence[torch.Tensor]) -> bool:
    # Not data_ptr(), which is zero on the meta device.
    memory, next_element = parts[0].untyped_storage()._cdata, parts[0].storage_offset()
    for part in parts:
        if part.untyped_storage()._cdata != memory or part.storage_offset() != next_element:
            return False
        if not part.is_contiguous():
            return False
        next_element += part.numel()
    return True
