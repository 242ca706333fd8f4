"""Which kernels a device computes with, chosen once at start."""

import importlib.util
import logging
from dataclasses import dataclass

import torch

from .decoder import Forward, torch_forward
from .kv_cache import BLOCK_SIZE
from .lm_head import Project, torch_project
from .paged_attention import PagedKernels, TorchKernels

logger = logging.getLogger(__name__)
# Of the self-test, relative to the reference's norm: several times what rounding to the dtype leaves.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Backend:
    """`paged` None is the CPU's own attention, which does not read the cache in place."""

    paged: PagedKernels | None
    forward: Forward
    project: Project


CPU = Backend(None, torch_forward, torch_project)
TORCH = Backend(TorchKernels(), torch_forward, torch_project)


def triton_backend(device: torch.device) -> Backend:
    """Raises ImportError without Triton."""
    from .kernels.forward import TritonForward, max_fused_rows
    from .kernels.triton_kernels import TritonKernels

    forward = TritonForward(max_fused_rows(device))
    return Backend(TritonKernels(), forward, forward.project)


def choose(device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_size: int) -> Backend:
    """Triton's kernels on a GPU where they agree with torch's on a random case, else torch's. The log says which."""
    if device.type != "cuda":
        return CPU
    if importlib.util.find_spec("triton") is None:
        logger.warning("attention: torch's operators, several times slower: Triton is not installed")
        return TORCH
    try:
        from .kernels.forward import linear_error

        backend = triton_backend(device)
        error = self_test(backend, device, dtype, num_heads, num_kv_heads, head_size)
        error = max(error, linear_error(device, dtype))
    except Exception as failure:  # no compiler, a card that Triton does not know: torch's operators serve all the same
        logger.warning("attention: torch's operators, several times slower: Triton fails with %r", failure)
        return TORCH
    if not error <= TOLERANCE[dtype]:  # NaN too
        logger.warning("attention: torch's operators, several times slower: Triton's result is %.1e off", error)
        return TORCH
    logger.info("attention: Triton's paged decode kernel, %.1e from torch's result", error)
    return backend


@torch.inference_mode()
def self_test(
    backend: Backend, device: torch.device, dtype: torch.dtype, num_heads: int, num_kv_heads: int, head_size: int
) -> float:
    """The relative error of decode attention against TorchKernels, on random keys in scattered blocks."""
    assert backend.paged is not None
    random = torch.Generator().manual_seed(0)
    num_seqs, blocks = 3, 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(device, dtype)

    heads = normal(num_seqs, num_heads + 2 * num_kv_heads, head_size)
    keys, values = (normal(num_kv_heads, (num_seqs * blocks + 1) * BLOCK_SIZE, head_size) for _ in range(2))
    angles = torch.rand(blocks * BLOCK_SIZE, head_size // 2, generator=random).repeat(1, 2)
    cos, sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)
    positions = torch.tensor([0, 37, blocks * BLOCK_SIZE - 1], dtype=torch.int32, device=device)
    tables = torch.randperm(num_seqs * blocks, generator=random).int().view(num_seqs, blocks).to(device)
    results = [
        kernels.decode(heads.clone(), cos, sin, positions, tables, keys.clone(), values.clone()).double()
        for kernels in (backend.paged, TorchKernels())
    ]
    return float((results[0] - results[1]).norm() / results[1].norm())
