"""What the kernels of row_wise.c do to each row by itself."""

import ctypes

import torch

from .library import ROW_DTYPES, Pointer, load_kernels, pointer


class _RowWiseLayer(ctypes.Structure):
    """`row_wise_layer` of row_wise.c."""

    _fields_ = (
        *((name, Pointer) for name in ("rows", "added", "weight", "output")),
        *((name, ctypes.c_int64) for name in ("count", "size")),
        ("epsilon", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("is_bfloat16", "threads")),
    )


def add_rms_norm(
    hidden: torch.Tensor, update: torch.Tensor | None, weight: torch.Tensor, epsilon: float
) -> torch.Tensor:
    """Adds `update` to `hidden` in place, both (rows, size) in float32 or bfloat16, and returns the RMSNorm of the sum.

    Without an `update` only the norm is computed (Zhang and Sennrich 2019, arXiv:1910.07467).
    """
    output = torch.empty_like(hidden)
    layer = _RowWiseLayer(pointer(hidden), pointer(update), pointer(weight), pointer(output), *hidden.shape, epsilon)
    _run("llava_norm", layer, hidden)
    return output


def silu_product(gate_up: torch.Tensor) -> torch.Tensor:
    """Maps (rows, 2 * size), gate before up, to SiLU(gate) * up (Shazeer 2020, arXiv:2002.05202)."""
    output = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _run("llava_silu_product", _RowWiseLayer(pointer(gate_up), None, None, pointer(output), *output.shape), gate_up)
    return output


def quick_gelu(states: torch.Tensor) -> torch.Tensor:
    """Returns x * sigmoid(1.702 x) of each number, CLIP's approximation of GELU (Hendrycks and Gimpel 2016,
    arXiv:1606.08415, section 2). `states` has any shape, and is float32 or bfloat16."""
    rows = states.reshape(-1, states.shape[-1])
    output = torch.empty_like(rows)
    _run("llava_quick_gelu", _RowWiseLayer(pointer(rows), None, None, pointer(output), *rows.shape), rows)
    return output.view(states.shape)


def _run(function: str, layer: _RowWiseLayer, rows: torch.Tensor) -> None:
    kernels = load_kernels()
    assert kernels is not None
    assert rows.is_contiguous()
    assert rows.dtype in ROW_DTYPES
    layer.is_bfloat16, layer.threads = rows.dtype == torch.bfloat16, torch.get_num_threads()
    getattr(kernels, function)(ctypes.byref(layer))
