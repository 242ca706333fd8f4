"""The kernels that a device computes with, chosen once at start."""

import ctypes
import importlib.util
import logging
from dataclasses import dataclass
from itertools import accumulate

import torch

from .cpu_kernels.attention_kernels import CKernels
from .cpu_kernels.forward import c_forward, c_logits
from .cpu_kernels.library import ROW_DTYPES, load_kernels
from .cpu_kernels.prefill_kernels import CPrefillAttention
from .decoder import Forward, torch_forward
from .kv_cache import BLOCK_SIZE, LayerCache
from .lm_head import ComputeLogits, torch_logits
from .paged_attention import PagedKernels
from .prefill_attention import SequenceLengths, masked_attention
from .torch_kernels import TorchKernels

logger = logging.getLogger(__name__)
# The largest error of the self-test, relative to the reference's norm: several times what rounding to the dtype causes.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Backend:
    """The kernels of a device. With `paged` None, attention is CpuAttention, which gathers the cache's blocks.

    With `prefill` None, torch's kernels compute the attention of prompts and of the vision tower.
    """

    paged: PagedKernels | None
    forward: Forward
    compute_logits: ComputeLogits
    prefill: CPrefillAttention | None = None


CPU = Backend(None, torch_forward, torch_logits)
TORCH = Backend(TorchKernels(), torch_forward, torch_logits)


def triton_backend(device: torch.device) -> Backend:
    """Returns Triton's kernels. Raises ImportError without Triton."""
    from .kernels.forward import TritonForward, uses_tensor_cores
    from .kernels.triton_kernels import TritonKernels

    forward = TritonForward(uses_tensor_cores(device))
    return Backend(TritonKernels(), forward, forward.compute_logits)


def choose_backend(
    device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, num_heads: int, num_kv_heads: int,
    head_size: int, has_int8_layers: bool = False,
) -> Backend:  # fmt: skip
    """Returns Triton's kernels on a GPU if they agree with torch's on a random case, otherwise torch's operators.

    The log says which, and why. `has_int8_layers`: the model has layers of int8_linear.py.
    """
    if device.type != "cuda":
        return _choose_cpu_backend(dtype, cache_dtype, num_heads, num_kv_heads, head_size)
    if importlib.util.find_spec("triton") is None:
        logger.warning("attention: torch's operators, several times slower: Triton is not installed")
        return TORCH
    try:
        from .kernels.forward import int8_error, linear_error

        backend = triton_backend(device)
        error = decode_error(backend, device, dtype, cache_dtype, num_heads, num_kv_heads, head_size)
        error = max(error, linear_error(device, dtype), int8_error(device, dtype) if has_int8_layers else 0.0)
    except Exception as failure:  # no C compiler, or a card that Triton does not support: torch's operators still work
        logger.warning("attention: torch's operators, several times slower: Triton fails with %r", failure)
        return TORCH
    if not error <= TOLERANCE[dtype]:  # also true for NaN
        logger.warning("attention: torch's operators, several times slower: Triton's result is %.1e off", error)
        return TORCH
    logger.info("attention: Triton's paged decode kernel, %.1e from torch's result", error)
    return backend


def c_backend(kernels: ctypes.CDLL) -> Backend:
    return Backend(CKernels(kernels), c_forward, c_logits, CPrefillAttention(kernels))


def _choose_cpu_backend(
    dtype: torch.dtype, cache_dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_size: int
) -> Backend:
    without_kernels = CPU if cache_dtype == dtype else TORCH  # CpuAttention knows no scales
    kernels = load_kernels() if dtype in ROW_DTYPES else None
    if kernels is None:
        return without_kernels
    backend = c_backend(kernels)
    shape = num_heads, num_kv_heads, head_size
    decoded = decode_error(backend, torch.device("cpu"), dtype, cache_dtype, *shape)
    errors = decoded, prefill_error(backend, dtype, *shape)
    if not all(error <= TOLERANCE[dtype] for error in errors):  # also true for NaN
        logger.warning("attention: torch's operators, slower: the kernels' results are %.1e and %.1e off", *errors)
        return without_kernels
    return backend


@torch.inference_mode()
def decode_error(
    backend: Backend, device: torch.device, dtype: torch.dtype, cache_dtype: torch.dtype, num_heads: int,
    num_kv_heads: int, head_size: int,
) -> float:  # fmt: skip
    """Returns the relative error of decode attention against TorchKernels, on random keys in scattered blocks."""
    assert backend.paged is not None
    random = torch.Generator().manual_seed(0)
    num_seqs, num_blocks = 3, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    heads = normal(num_seqs, num_heads + 2 * num_kv_heads, head_size)
    keys, values = (normal(num_kv_heads, (num_seqs * num_blocks + 1) * BLOCK_SIZE, head_size) for _ in range(2))
    cache = LayerCache(keys, values).quantized() if cache_dtype == torch.int8 else LayerCache(keys, values)
    angles = torch.rand(num_blocks * BLOCK_SIZE, head_size // 2, generator=random).repeat(1, 2)
    cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    positions = torch.tensor([0, 37, num_blocks * BLOCK_SIZE - 1], dtype=torch.int32, device=device)
    block_tables = torch.randperm(num_seqs * num_blocks, generator=random).int().view(num_seqs, num_blocks).to(device)
    result, reference = (
        kernels.decode(heads.clone(), cos, sin, positions, block_tables, cache.clone()).double()
        for kernels in (backend.paged, TorchKernels())
    )
    return float((result - reference).norm() / reference.norm())


@torch.inference_mode()
def prefill_error(backend: Backend, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_size: int) -> float:
    """Returns the relative error of the attention of prompts against `masked_attention`, on random states."""
    assert backend.prefill is not None
    random = torch.Generator().manual_seed(0)
    queries, keys = [40, 1, 7], [40, 300, 20]
    query, key, value = (
        torch.randn(tokens, heads, head_size, generator=random).to(dtype)
        for tokens, heads in ((sum(queries), num_heads), (sum(keys), num_kv_heads), (sum(keys), num_kv_heads))
    )
    first_query, first_key = (torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (queries, keys))
    lengths = SequenceLengths(first_query, first_key, queries, keys)
    result, reference = (
        attention(query, key, value, lengths).double() for attention in (backend.prefill, masked_attention)
    )
    return float((result - reference).norm() / reference.norm())
