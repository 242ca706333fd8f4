"""Weights of linear layers with the same input, adjacent in one memory, so that one product computes all of them.

The memory is allocated before the weights are read. Concatenating loaded weights on a GPU would need a layer's weights
twice, and the allocator would keep the memory of the separate ones.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

# The projections of a LLaMA layer that have the same input, in the order in which they are fused.
STACKED_PROJECTIONS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))


def stacked_projections(layer: nn.Module) -> Iterator[list[Any]]:
    """Yields each group of linear modules of a LLaMA layer whose weights are fused."""
    for parent, names in STACKED_PROJECTIONS:
        yield [layer.get_submodule(f"{parent}.{name}") for name in names]


def allocate_fused(linears: Sequence[nn.Linear], device: torch.device, dtype: torch.dtype) -> None:
    """Gives the modules' weights, and their biases if they have any, adjacent memory."""
    for kind in ("weight", "bias"):
        parameters = [getattr(linear, kind) for linear in linears]
        if parameters[0] is not None:
            for linear, memory in zip(linears, _empty_adjacent(parameters, device, dtype), strict=True):
                setattr(linear, kind, nn.Parameter(memory, requires_grad=False))


def _empty_adjacent(
    tensors: Sequence[torch.Tensor], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Returns new memory of the tensors' shapes, which may differ only along dimension 0."""
    rows = [len(tensor) for tensor in tensors]
    return torch.split_with_sizes(torch.empty(sum(rows), *tensors[0].shape[1:], dtype=dtype, device=device), rows)


def fuse(linears: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns the weight and bias of one linear layer that computes all of `linears`, and makes theirs views of it.

    Nothing is copied if they are adjacent already, as `allocate_fused` made them.
    """
    weight = concatenate([linear.weight.detach() for linear in linears])
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    bias = concatenate(biases) if biases else None
    rows = [linear.out_features for linear in linears]
    for linear, view in zip(linears, torch.split_with_sizes(weight, rows), strict=True):
        linear.weight.data = view
    if bias is not None:
        for linear, view in zip(linears, torch.split_with_sizes(bias, rows), strict=True):
            linear.bias.data = view
    return weight, bias


def concatenate(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenates along dimension 0: returns a view if the tensors are adjacent in one memory, otherwise a copy."""
    if not _are_adjacent(tensors):
        return torch.cat(list(tensors))
    first = tensors[0]
    return first.as_strided((sum(len(tensor) for tensor in tensors), *first.shape[1:]), first.stride())


def _are_adjacent(tensors: Sequence[torch.Tensor]) -> bool:
    # Not data_ptr(), which is zero on the meta device.
    storage, next_element = tensors[0].untyped_storage()._cdata, tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage()._cdata != storage or tensor.storage_offset() != next_element:
            return False
        if not tensor.is_contiguous():
            return False
        next_element += tensor.numel()
    return True
