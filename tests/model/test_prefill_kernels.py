"""Attention of prompts and of the vision tower by the compiled CPU kernels, in both of their vector widths."""

import ctypes
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_cpu_kernels import DTYPES, compiled, error, property_test
from transformers import CLIPVisionConfig, CLIPVisionModel

from llava_serving.model.cpu_kernels import row_wise
from llava_serving.model.cpu_kernels.prefill_kernels import CPrefillAttention
from llava_serving.model.cpu_kernels.vision_tower import use_kernels
from llava_serving.model.prefill_attention import SequenceLengths

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=["native", "AVX2"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The kernels for this processor, or those for any with AVX2."""
    kernels = compiled(request.param)
    monkeypatch.setattr(row_wise, "load_kernels", lambda: kernels)
    return kernels


def sequence_lengths(queries: list[int], keys: list[int]) -> SequenceLengths:
    first_query, first_key = (
        torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32) for lengths in (queries, keys)
    )
    return SequenceLengths(first_query, first_key, queries, keys)


def surrounded(tokens: int, heads: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Random states (tokens, heads, size) inside larger memory, which is NaN around them and not aligned."""
    memory = torch.full((tokens + 2, heads + 3, size), torch.nan, dtype=dtype)
    states = memory[1:-1, 1 : 1 + heads]
    states.copy_(torch.randn(tokens, heads, size) * 2)
    return states


def expected(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention of one sequence in float64, each argument (tokens, heads, size)."""
    group, context = query.shape[1] // key.shape[1], len(key) - len(query)
    query, key, value = (states.double().transpose(0, 1) for states in (query, key, value))
    scores = query @ key.repeat_interleave(group, 0).transpose(1, 2) * query.shape[2] ** -0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(context + 1), -torch.inf)
    return (scores.softmax(-1) @ value.repeat_interleave(group, 0)).transpose(0, 1)


CHUNKS = st.lists(st.tuples(st.integers(1, 70), st.sampled_from([0, 0, 5, 31, 300])), min_size=1, max_size=4)


@pytest.mark.parametrize("dtype", DTYPES)
@property_test(60)
@given(CHUNKS, st.sampled_from([(1, 1), (4, 4), (6, 2)]), st.sampled_from([1, 2, 7, 24, 64, 128]), st.integers(0, 99))
def test_a_prompt_sees_its_own_earlier_tokens_only(
    kernels: ctypes.CDLL, dtype: torch.dtype, chunks: list[tuple[int, int]], heads: tuple[int, int], size: int,
    seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    queries, keys = [queries for queries, _ in chunks], [queries + context for queries, context in chunks]
    query = surrounded(sum(queries), heads[0], size, dtype)
    key, value = (surrounded(sum(keys), heads[1], size, dtype) for _ in range(2))
    result = CPrefillAttention(kernels)(query, key, value, sequence_lengths(queries, keys))
    assert result.dtype == dtype
    parts = zip(result.split(queries), query.split(queries), key.split(keys), value.split(keys), strict=True)
    for own, *states in parts:
        assert error(own, expected(*states, causal=True)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_grow_and_fall_along_a_long_prompt(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(700, 1, 32).to(dtype) for _ in range(3))
    for factors in (torch.linspace(0, 8, 700), torch.linspace(8, 0, 700)):
        scaled = (key * factors[:, None, None]).to(dtype)
        result = CPrefillAttention(kernels)(query, scaled, value, sequence_lengths([700], [700]))
        assert error(result, expected(query, scaled, value, causal=True)) < TOLERANCE[dtype]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_sequence_that_is_not_finite_spoils_no_other(kernels: ctypes.CDLL, value: float) -> None:
    query, key, values = (torch.randn(60, 2, 16) for _ in range(3))
    for states in (query, key, values):
        states[20:40] = value
    result = CPrefillAttention(kernels)(query, key, values, sequence_lengths([20] * 3, [20] * 3))
    assert result[:20].isfinite().all()
    assert result[40:].isfinite().all()
    assert result[20:40].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pictures", [1, 3])
def test_the_vision_tower_computes_as_with_transformers_attention(
    kernels: ctypes.CDLL, dtype: torch.dtype, pictures: int
) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=96, intermediate_size=64, num_attention_heads=4, num_hidden_layers=2, image_size=112, patch_size=14
    )
    tower, pixels = CLIPVisionModel(config).eval(), torch.randn(pictures, 3, 112, 112)
    with torch.inference_mode():
        reference = tower.double()(pixels.double()).last_hidden_state
        tower.to(dtype)
        use_kernels(tower, CPrefillAttention(kernels))
        assert error(tower(pixels.to(dtype)).last_hidden_state, reference) < {torch.float32: 1e-5}.get(dtype, 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    states = (torch.randn(2, 20, 300) * 30).to(dtype)
    exact = states.double() * torch.sigmoid(1.702 * states.double())
    assert error(row_wise.quick_gelu(states), exact) < {torch.float32: 1e-6, torch.bfloat16: 6e-3}[dtype]
