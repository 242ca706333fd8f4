"""Grouped-query attention of mixed prefill and decode steps, by each backend that runs on a CPU, against float64."""

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from transformers import LlamaConfig

from llava_serving.model.attention import TokenRange, slot_mapping
from llava_serving.model.cpu_attention import CpuAttention
from llava_serving.model.cpu_kernels.attention_kernels import CKernels
from llava_serving.model.cpu_kernels.library import compile_kernels
from llava_serving.model.kv_cache import KVCache, LayerCache
from llava_serving.model.paged_attention import PagedAttention, PagedKernels
from llava_serving.model.prefill_attention import masked_attention
from llava_serving.model.torch_kernels import TorchKernels

HEADS, HEAD_SIZE, CONTEXT, NUM_BLOCKS = 4, 8, 64, 8
BLOCK_TABLES = {1: [6, 1, 4], 2: [0, 5], 3: [3]}
# The positions `start` to `end` of each sequence in each step: ranges of one token (decode) first, by ascending `end`.
STEPS = [
    {1: (0, 21)},
    {1: (21, 22), 2: (0, 7)},
    {1: (22, 23), 3: (0, 5), 2: (7, 20)},
    {3: (5, 6), 2: (20, 21), 1: (23, 24)},
    {3: (6, 7), 2: (21, 22), 1: (24, 40)},
]


def rotary_tables() -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 10000.0 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    angles = (torch.arange(CONTEXT)[:, None] * frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def expected_attention(heads: torch.Tensor, cached: LayerCache, block_table: list[int]) -> torch.Tensor:
    """Returns causal attention over all tokens of one sequence, `heads` (tokens, all heads, head size), in float64.

    It attends to what the cache holds of each key and value, which is checked first. In int8 that may be half of a
    127th of the largest number away.
    """
    num_kv_heads = len(cached.keys)
    cos, sin = (table[: len(heads), None].double() for table in rotary_tables())
    query_and_key, value = heads.double().split([HEADS + num_kv_heads, num_kv_heads], dim=1)
    first, second = query_and_key.chunk(2, dim=-1)
    rotated = query_and_key * cos + torch.cat((-second, first), dim=-1) * sin
    query, key = rotated[:, :HEADS], rotated[:, HEADS:]
    slots = torch.from_numpy(slot_mapping([TokenRange(0, 0, len(heads), block_table)]))
    keys, values = (states.double() for states in cached.gather(slots, torch.float32))
    for numbers, exact in ((keys, key), (values, value)):
        step = exact.abs().amax(-1, keepdim=True) / 127 if cached.keys.dtype == torch.int8 else 0
        assert ((numbers - exact).abs() <= step * 0.5001 + 1e-6).all()
    group = HEADS // num_kv_heads
    scores = torch.einsum("qhd,khd->hqk", query, keys.repeat_interleave(group, 1)) * HEAD_SIZE**-0.5
    future = torch.ones(len(heads), len(heads), dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values.repeat_interleave(group, 1))


compiled = functools.cache(compile_kernels)


def c_kernels() -> CKernels:
    return CKernels(compiled())


def run_steps(attention: CpuAttention | PagedAttention, sequences: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
    for step in STEPS:
        plan = attention.plan([TokenRange(seq, start, end, BLOCK_TABLES[seq]) for seq, (start, end) in step.items()])
        attend = plan.bind({name: torch.from_numpy(array) for name, array in plan.arrays.items()})
        yield attend(0, torch.cat([sequences[seq][start:end] for seq, (start, end) in step.items()]))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("kernels", "cache_dtype"),
    [
        (None, torch.float32), (TorchKernels, torch.float32), (TorchKernels, torch.int8), (c_kernels, torch.float32),
        (c_kernels, torch.int8),
    ],
)  # fmt: skip
def test_mixed_steps_with_grouped_query_attention_equal_float64(
    kernels: Callable[[], PagedKernels] | None, cache_dtype: torch.dtype, num_kv_heads: int
) -> None:
    config = LlamaConfig(num_attention_heads=HEADS, num_key_value_heads=num_kv_heads, head_dim=HEAD_SIZE)
    cache = KVCache(config, 1, NUM_BLOCKS, cache_dtype, torch.device("cpu"))
    cos, sin = rotary_tables()
    attention: CpuAttention | PagedAttention = CpuAttention(cache, cos, sin)
    if kernels is not None:
        attention = PagedAttention(cache, cos, sin, kernels(), masked_attention)
    random = torch.Generator().manual_seed(num_kv_heads)
    sequences = {seq: torch.randn(40, HEADS + 2 * num_kv_heads, HEAD_SIZE, generator=random) for seq in BLOCK_TABLES}
    for step, outputs in zip(STEPS, run_steps(attention, sequences), strict=True):
        output = outputs.double()
        for seq, (start, end) in step.items():
            attended, output = output.split([end - start, len(output) - (end - start)])
            expected = expected_attention(sequences[seq][:end], cache.layers[0], BLOCK_TABLES[seq])[start:]
            assert torch.allclose(attended, expected, atol=1e-4 if cache_dtype == torch.int8 else 1e-5)
