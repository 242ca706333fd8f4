"""The compiled CPU kernels against float64, in both of their vector widths."""

import copy
import ctypes
import functools
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_llava import answers, running, tokens
from test_static_decode import PROMPT_LISTS, PROMPTS, model
from torch import nn
from torch.nn.functional import rms_norm, silu
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.prompt import EnginePrompt
from llava_serving.model.backend import CPU, TORCH, c_backend
from llava_serving.model.cpu_kernels import cpu_linear, library, row_wise
from llava_serving.model.cpu_kernels.attention_kernels import CKernels
from llava_serving.model.cpu_kernels.cpu_linear import CpuLinear
from llava_serving.model.cpu_kernels.packed_weight import NumberFormat, PackedWeight
from llava_serving.model.kv_cache import BLOCK_SIZE, LayerCache
from llava_serving.model.rotary import apply_rotary
from llava_serving.model.torch_kernels import TorchKernels

INTEGERS = [NumberFormat.INT8, NumberFormat.INT4]
SIZES = [(1, 1), (32, 64), (70, 100), (96, 2048), (33, 4500)]  # out features, in features
DTYPES = [torch.float32, torch.bfloat16]


def property_test(examples: int) -> Callable[[Any], Any]:
    """The fixture sets the same kernels for all examples of a test."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def own_model(num_kv_heads: int = 2) -> LlavaForConditionalGeneration:
    """Returns a copy, because the kernels stay in the layers of its vision tower."""
    return copy.deepcopy(model(num_kv_heads))


@functools.cache
def compiled(width: str) -> ctypes.CDLL:
    return library.compile_kernels(*(["-DLLAVA_AVX2", "-mno-avxvnni"] if width == "AVX2" else []))


@pytest.fixture(params=["native", "AVX2"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    """The kernels for this processor, or those for any with AVX2."""
    kernels = compiled(request.param)
    for module in (cpu_linear, row_wise):
        monkeypatch.setattr(module, "load_kernels", lambda: kernels)
    return kernels


def layer(out_features: int, in_features: int, number_format: NumberFormat, bias: bool = True) -> CpuLinear:
    made = CpuLinear.empty_fused([nn.Linear(in_features, out_features, bias=bias, device="meta")], number_format)[0]
    made.fill(0, torch.randn(out_features, in_features) * torch.rand(out_features, 1))
    if made.bias is not None:
        made.bias.copy_(torch.randn(out_features))
    return made


def expected(linear: CpuLinear, states: torch.Tensor) -> torch.Tensor:
    """The documented arithmetic in float64."""
    rows = states.double()
    if linear.packed.format is NumberFormat.BFLOAT16:
        rows = states.bfloat16().double()
    else:
        scale = rows.abs().amax(-1, keepdim=True) / 127
        rows = (rows / scale).round() * scale
    assert linear.bias is not None
    return rows @ linear.packed.unpacked().double().T + linear.bias.double()


def error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("number_format", NumberFormat)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 13, 29, 700])
def test_a_linear_layer_computes_what_its_numbers_stand_for(
    number_format: NumberFormat, dtype: torch.dtype, rows: int
) -> None:
    torch.manual_seed(rows)
    for size in SIZES:
        linear, states = layer(*size, number_format), torch.randn(rows, size[1]).to(dtype)
        output = linear(states)
        assert output.dtype == dtype
        assert error(output, expected(linear, states)) < (4e-3 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.parametrize("number_format", INTEGERS)
@pytest.mark.parametrize("rows", [2, 5, 13, 400])
def test_a_row_of_integers_depends_on_no_other_row(number_format: NumberFormat, rows: int) -> None:
    torch.manual_seed(0)
    linear, states = layer(70, 300, number_format), torch.randn(rows, 300)
    together = linear(states)
    assert all(torch.equal(together[i : i + 1], linear(states[i : i + 1])) for i in range(rows))


@pytest.mark.parametrize("number_format", NumberFormat)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_spoils_only_its_own_output(number_format: NumberFormat, value: float) -> None:
    states = torch.randn(5, 128)
    states[2, 77] = value
    finite = layer(40, 128, number_format)(states).isfinite()
    assert finite[[0, 1, 3, 4]].all()
    assert not finite[2].any()


def test_a_row_of_zeros_gives_the_bias() -> None:
    for number_format in NumberFormat:
        linear = layer(40, 128, number_format)
        assert torch.equal(linear(torch.zeros(3, 128)), linear.bias.expand(3, 40))


def test_the_largest_integers_do_not_saturate() -> None:
    weight = torch.ones(32, 4096)
    for sign in (1, -1):
        linear = CpuLinear.empty_fused([nn.Linear(4096, 32, bias=False, device="meta")], NumberFormat.INT8)[0]
        linear.fill(0, sign * weight)
        for rows in (1, 13):
            assert torch.allclose(linear(torch.ones(rows, 4096)), torch.full((rows, 32), sign * 4096.0))


@pytest.mark.parametrize("number_format", NumberFormat)
@property_test(40)
@given(st.integers(1, 100), st.integers(1, 200), st.lists(st.integers(1, 99), max_size=4), st.integers(0, 99))
def test_rows_may_be_packed_in_any_pieces(
    number_format: NumberFormat, out_features: int, in_features: int, cuts: list[int], seed: int
) -> None:
    rows = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(seed))
    whole, pieces = (PackedWeight(out_features, in_features, number_format) for _ in range(2))
    whole.fill(0, rows)
    bounds = [0, *sorted({cut for cut in cuts if cut < out_features}), out_features]
    for start, stop in itertools.pairwise(bounds):
        pieces.fill(start, rows[start:stop])
    assert torch.equal(whole.unpacked(), pieces.unpacked())


@pytest.mark.parametrize(
    ("number_format", "largest"), [(NumberFormat.INT8, 0.01), (NumberFormat.INT4, 0.13), (NumberFormat.BFLOAT16, 0.003)]
)
def test_packed_weights_are_near_the_original_ones(number_format: NumberFormat, largest: float) -> None:
    torch.manual_seed(0)
    rows, weight = torch.randn(64, 512), PackedWeight(64, 512, number_format)
    weight.fill(0, rows)
    assert error(weight.unpacked(), rows.double()) < largest


def test_fused_layers_equal_the_separate_ones_and_share_their_memory() -> None:
    for number_format in NumberFormat:
        parts = CpuLinear.empty_fused([nn.Linear(96, rows, device="meta") for rows in (64, 40, 10)], number_format)
        for part in parts:
            part.fill(0, torch.randn(part.out_features, 96))
            assert part.bias is not None
            part.bias.copy_(torch.randn(part.out_features))
        fused, states = CpuLinear.fuse(parts), torch.randn(2, 3, 96)
        assert torch.equal(fused(states), torch.cat([part(states) for part in parts], dim=-1))
        assert fused.packed is parts[0].packed


def test_without_kernels_the_weight_is_unpacked_for_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for number_format in NumberFormat:
        linear, states = layer(70, 300, number_format), torch.randn(5, 300)
        with monkeypatch.context() as patch:
            patch.setattr(cpu_linear, "load_kernels", lambda: None)
            assert error(linear(states), expected(linear, states)) < 0.02  # the rows are not quantized


def test_several_threads_may_compute_at_the_same_time() -> None:
    linear, states = layer(512, 512, NumberFormat.INT8), torch.randn(40, 512)
    reference, wrong = linear(states), []

    def compute() -> None:
        wrong.extend(1 for _ in range(50) if not torch.equal(linear(states), reference))

    threads = [threading.Thread(target=compute) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def attention_case(
    lengths: list[int], num_heads: int, num_kv_heads: int, size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """Decode rows of sequences of these lengths in scattered blocks. What no sequence has written is NaN."""
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    order = torch.randperm(sum(blocks)).int().split(blocks)
    tables = torch.full((len(lengths), max(blocks)), sum(blocks), dtype=torch.int32)
    keys, values = (torch.full((num_kv_heads, (sum(blocks) + 1) * BLOCK_SIZE, size), torch.nan) for _ in range(2))
    for table, own, length in zip(tables, order, lengths, strict=True):
        table[: len(own)] = own
        for position in range(length - 1):
            slot = int(own[position // BLOCK_SIZE]) * BLOCK_SIZE + position % BLOCK_SIZE
            keys[:, slot], values[:, slot] = torch.randn(2, num_kv_heads, size)
    angles = torch.rand(max(lengths), size // 2).repeat(1, 2)
    heads = torch.randn(len(lengths), num_heads + 2 * num_kv_heads, size)
    floats = (heads, angles.cos(), angles.sin(), keys, values)
    return *(tensor.to(dtype) for tensor in floats), torch.tensor(lengths, dtype=torch.int32) - 1, tables


def numbers(cache: LayerCache, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the keys and values (KV heads, tokens, head size) that the cache holds, in float64."""
    keys, values = (cached[:, slots].double() for cached in (cache.keys, cache.values))
    if cache.key_scales is None or cache.value_scales is None:
        return keys, values
    return keys * cache.key_scales[:, slots, None].double(), values * cache.value_scales[:, slots, None].double()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@property_test(25)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=6), st.sampled_from([(1, 1), (4, 4), (6, 2)]),
    st.sampled_from([2, 8, 24, 128]), st.integers(0, 99),
)  # fmt: skip
def test_decode_attention_reads_only_what_its_sequence_wrote(
    kernels: ctypes.CDLL, dtype: torch.dtype, int8: bool, lengths: list[int], num_heads: tuple[int, int], size: int,
    seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    heads, cos, sin, keys, values, positions, tables = attention_case(lengths, *num_heads, size, dtype)
    cache = LayerCache(keys, values).quantized() if int8 else LayerCache(keys, values)
    before = cache.clone()
    result = CKernels(kernels).decode(heads.clone(), cos, sin, positions, tables, cache)
    unwritten = torch.ones(keys.shape[1], dtype=torch.bool)
    query_heads, kv_heads = num_heads
    for row, length in enumerate(lengths):
        states, angle = heads[row].double(), (cos[length - 1].double(), sin[length - 1].double())
        slots = torch.tensor([int(tables[row, p // BLOCK_SIZE]) * BLOCK_SIZE + p % BLOCK_SIZE for p in range(length)])
        key, value = numbers(cache, slots)
        unwritten[slots[-1]] = False
        own_key, own_value = apply_rotary(states[query_heads:-kv_heads], *angle), states[-kv_heads:]
        assert error(key[:, -1], own_key) < 1e-2
        assert error(value[:, -1], own_value) < (1e-2 if int8 else 1e-30)
        query = apply_rotary(states[:query_heads], *angle).view(kv_heads, -1, size)
        weights = (query @ key.transpose(1, 2) * size**-0.5).softmax(-1)
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-4 if int8 else 1e-5
        # Values that cancel out leave the rounding of their weights.
        largest = (weights @ value.abs()).flatten(0, 1).norm()
        difference = (result[row].double() - (weights @ value).flatten(0, 1)).norm()
        assert difference < tolerance * largest
    for was, now in zip(before, cache, strict=True):
        if was is not None and now is not None:
            assert torch.equal(was[:, unwritten].nan_to_num(9), now[:, unwritten].nan_to_num(9))


@pytest.mark.parametrize("dtype", DTYPES)
@property_test(25)
@given(st.sampled_from([(1, 1), (4, 4), (6, 2)]), st.sampled_from([2, 8, 24, 128]), st.integers(0, 99))
def test_keys_and_values_are_rounded_to_8_bits_as_by_torch(
    kernels: ctypes.CDLL, dtype: torch.dtype, num_heads: tuple[int, int], size: int, seed: int
) -> None:
    """At position 0, where nothing is rotated. Prompts attend to the rounded numbers. NaN and infinity stay visible."""
    torch.manual_seed(seed)
    query_heads, kv_heads = num_heads
    heads = (torch.randn(9, query_heads + 2 * kv_heads, size) * torch.randn(9, 1, 1).exp()).to(dtype)
    heads[torch.rand(heads.shape[:2]) < 0.2] = 0
    heads[3, query_heads, 1] = heads[5, -1, 0] = torch.nan if seed % 2 else torch.inf
    finite = heads.isfinite().all(-1)[:, query_heads:]
    angles = torch.ones(9, size).to(dtype), torch.zeros(9, size).to(dtype), torch.zeros(9).long()
    slots, results = torch.randperm(2 * BLOCK_SIZE)[:9], []
    for rounding in (CKernels(kernels), TorchKernels()):
        states = heads.clone()
        cache = LayerCache(*(torch.zeros(kv_heads, 2 * BLOCK_SIZE, size) for _ in range(2))).quantized()
        rounding.rotate_and_cache(states, *angles, slots, cache)
        cached = torch.cat(cache.gather(slots, dtype), 1)
        assert torch.equal(cached.isfinite().all(-1), finite)
        assert torch.equal(states[:, query_heads:][finite], cached[finite])
        assert torch.equal(states[:, :query_heads], heads[:, :query_heads])
        results.append(cached[finite])
    assert torch.equal(*results)
    assert error(results[0], heads[:, query_heads:][finite].double()) < 1e-2


def test_a_padding_row_writes_nothing(kernels: ctypes.CDLL) -> None:
    heads, cos, sin, keys, values, positions, tables = attention_case([5, 9], 2, 2, 8, torch.float32)
    before = keys.clone(), values.clone()
    cache = LayerCache(keys, values)
    output = CKernels(kernels).decode(heads, cos, sin, torch.full_like(positions, -1), tables, cache)
    assert torch.equal(output, torch.zeros_like(output))
    assert all(torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in zip(before, (keys, values), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 40])
def test_norms_and_swiglu(dtype: torch.dtype, rows: int) -> None:
    tolerance = 6e-3 if dtype == torch.bfloat16 else 1e-6
    hidden, update, weight = (torch.randn(rows, 300).to(dtype) for _ in range(3))
    added = (hidden + update).double()
    normed = row_wise.add_rms_norm(hidden, update, weight[0], 1e-6)
    assert error(hidden, added) < tolerance
    assert error(normed, rms_norm(added, (300,), weight[0].double(), 1e-6)) < tolerance
    gate_up = (torch.randn(rows, 600) * 30).to(dtype)
    gate, up = gate_up.double().chunk(2, -1)
    assert error(row_wise.silu_product(gate_up), silu(gate) * up) < tolerance


def test_the_engine_answers_in_8_bits_as_with_torchs_operators(kernels: ctypes.CDLL) -> None:
    outcomes = []
    for backend in (TORCH, c_backend(kernels)):
        with running(own_model(), backend, kv_cache_dtype="int8", max_num_batched_tokens=16) as engine:
            outcomes.append(tokens(answers(engine, *PROMPTS)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.slow
@property_test(15)
@given(PROMPT_LISTS, st.sampled_from([16, 200]), st.sampled_from([8, 64]), st.sampled_from([1, 2]))
def test_the_engine_answers_as_with_torchs_operators(
    kernels: ctypes.CDLL, prompts: list[EnginePrompt], num_blocks: int, step_tokens: int, num_kv_heads: int
) -> None:
    limits = {"num_blocks": num_blocks, "max_num_batched_tokens": step_tokens}
    with running(model(num_kv_heads), CPU, **limits) as engine:
        expected = answers(engine, *prompts)
    with running(own_model(num_kv_heads), c_backend(kernels), **limits) as engine:
        assert tokens(answers(engine, *prompts)) == tokens(expected)
