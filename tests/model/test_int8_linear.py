"""8-bit weights of a GPU, computed on a CPU by torch's operators and compared with own arithmetic."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape, write_parts
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import naive_merge, write_merged
from small_llava import NoWaiting, answers, engine_prompt, running, small_llava, tokens
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_serving.engine.prompt import SamplingParams
from llava_serving.errors import StartupError
from llava_serving.model.backend import CPU, TORCH, triton_backend
from llava_serving.model.int8_linear import MAX_EXACT_ROWS, Int8Linear, multiplies_integers
from llava_serving.weights import placement
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder
from llava_serving.weights.packing import int8_on_gpu, packed_parts

ON_CPU = torch.device("cpu")


def rounded(rows: torch.Tensor) -> torch.Tensor:
    """Returns each number as the nearest multiple of a 127th of the largest one of its row, in float64.

    It divides in float32, because a number half way between two multiples could be rounded to the other one.
    """
    step = rows.float().abs().amax(-1, keepdim=True) / 127
    return (rows.float() / step).round().double() * step.double()


def random_int8(out_features: int, in_features: int, step: int, bias: bool = False) -> tuple[Int8Linear, torch.Tensor]:
    """Returns a layer, filled `step` rows at a time, and its original weight."""
    random = torch.Generator().manual_seed(out_features)
    weight = torch.randn(out_features, in_features, generator=random)
    shape = nn.Linear(in_features, out_features, bias, device="meta")
    (linear,) = Int8Linear.empty_fused([shape], ON_CPU, torch.float32)
    for start in range(0, out_features, step):
        linear.fill(start, weight[start : start + step])
    if linear.bias is not None:
        linear.bias.copy_(torch.randn(out_features, generator=random))
    return linear, weight


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 20), st.integers(1, 30), st.integers(1, 40), st.booleans())
def test_few_rows_are_exact_and_more_than_64_are_rounded_to_8_bits(
    rows: int, out_eighths: int, in_eighths: int, step: int, bias: bool
) -> None:
    linear, weight = random_int8(8 * out_eighths, 8 * in_eighths, step, bias)
    states = torch.randn(rows, 8 * in_eighths, generator=torch.Generator().manual_seed(rows))
    expected = (states.double() if rows <= MAX_EXACT_ROWS else rounded(states)) @ rounded(weight).T
    if linear.bias is not None:
        expected += linear.bias
    assert relative_error(linear(states), expected) < 1e-5
    assert linear.weight.nbytes + linear.scale.nbytes == 8 * out_eighths * (8 * in_eighths + 4)


def test_many_rows_are_not_rounded_if_the_tensor_cores_cannot_multiply_the_size() -> None:
    """torch multiplies integers on a GPU only if both sizes are multiples of 8."""
    for out_features, in_features in ((36, 64), (64, 36)):
        linear, weight = random_int8(out_features, in_features, 64)
        assert not linear.rounds_inputs
        states = torch.randn(100, in_features)
        assert relative_error(linear(states), states.double() @ rounded(weight).T) < 1e-5


def test_a_row_has_the_same_result_beside_any_other_rows() -> None:
    linear, _ = random_int8(64, 128, 64)
    states = torch.randn(200, 128)
    loud = states.clone()
    loud[1:] *= 1000
    assert torch.equal(linear(states)[0], linear(loud)[0])


@pytest.mark.parametrize("rows", [3, 100])
def test_rows_with_nan_or_infinity_are_not_finite(rows: int) -> None:
    linear, _ = random_int8(64, 128, 64)
    states = torch.randn(rows, 128)
    states[0, 5], states[1, 5] = torch.nan, torch.inf
    finite = linear(states).isfinite().all(1)
    assert finite.tolist() == [False, False, *[True] * (rows - 2)]


def test_zeros_stay_zeros() -> None:
    (linear,) = Int8Linear.empty_fused([nn.Linear(64, 64, False, "meta")], ON_CPU, torch.float32)
    linear.fill(0, torch.zeros(64, 64))
    for rows in (2, 100):
        assert torch.equal(linear(torch.randn(rows, 64)), torch.zeros(rows, 64))
        assert torch.equal(linear(torch.zeros(rows, 64)), torch.zeros(rows, 64))


def test_fused_layers_equal_the_separate_ones_and_share_their_memory() -> None:
    shapes = [nn.Linear(64, rows, True, "meta") for rows in (64, 32, 32)]
    linears = Int8Linear.empty_fused(shapes, ON_CPU, torch.float32)
    for linear in linears:
        linear.fill(0, torch.randn(linear.out_features, 64))
        assert linear.bias is not None
        linear.bias.normal_()
    fused = Int8Linear.fuse(linears)
    for rows in (3, 100):
        states = torch.randn(rows, 64)
        assert torch.allclose(fused(states), torch.cat([linear(states) for linear in linears], dim=-1), atol=1e-5)
    assert linears[1].weight.untyped_storage().data_ptr() == fused.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_gpu_has_int8_and_refuses_int4(quantization: str) -> None:
    if quantization == "int8":
        (part,) = packed_parts(quantization, torch.device("cuda"), torch.float16)
        assert part.name == "model.language_model.layers"
    else:
        with pytest.raises(StartupError, match="LLAVA_QUANTIZATION=int4 is for a CPU; on a GPU set int8 or nf4"):
            packed_parts(quantization, torch.device("cuda"), torch.float16)


def int_mm_that_fails(*tensors: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")


def int_mm_that_errs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), weight.shape[1], dtype=torch.int32)


@pytest.mark.parametrize(("product", "said"), [(int_mm_that_fails, "NOT_SUPPORTED"), (int_mm_that_errs, "wrong")])
def test_a_card_whose_integer_product_fails_unpacks_the_weights_and_says_so(
    product: Callable[..., torch.Tensor], said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "_int_mm", product)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)  # there is no card here
    with caplog.at_level(logging.WARNING):
        assert not multiplies_integers.__wrapped__(torch.device("cuda"))
    assert said in caplog.text
    assert "steps of more than 64 rows unpack the weights first" in caplog.text


@pytest.fixture(scope="module")
def wide_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random base/, delta/ and vision/ with weights so wide that each is read in several chunks."""
    return write_parts(tmp_path_factory.mktemp("wide"), Shape(hidden=1024, intermediate=4672, heads=8, layers=1))


def load_as_on_gpu(folder: PartsFolder | MergedFolder, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Loads a model with the layers that a GPU has, on a CPU."""
    monkeypatch.setattr(placement, "packed_parts", lambda _, device, dtype: [int8_on_gpu(device, dtype)])
    return load_model(folder, "cpu", "float32", quantization="int8")


def test_the_language_model_is_packed_while_loading_and_a_merged_folder_gives_the_same_bits(
    wide_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = load_model(PartsFolder(wide_parts), "cpu", "float32")
    loaded = load_as_on_gpu(PartsFolder(wide_parts), monkeypatch)
    assert loaded.num_parameters == original.num_parameters
    packed = {name: module for name, module in loaded.model.named_modules() if isinstance(module, Int8Linear)}
    prefix = "model.language_model."
    linears = {name for name, module in original.model.named_modules() if isinstance(module, nn.Linear)}
    assert packed.keys() == {name for name in linears if name.startswith(prefix)}
    merged_weights = naive_merge(wide_parts)
    for name, module in packed.items():
        expected = rounded(merged_weights["model." + name.removeprefix(prefix) + ".weight"])
        differs = (module.weight * module.scale[:, None] - expected).abs() > 1e-6
        assert differs.float().mean() < 1e-3, name  # weights half way between two multiples
    state_dict = loaded.model.state_dict()
    for name, value in original.model.state_dict().items():
        if name.removesuffix(".weight") not in packed:
            assert torch.equal(state_dict[name], value), name
    merged = load_as_on_gpu(MergedFolder(write_merged(wide_parts, tmp_path / "merged")), monkeypatch)
    for name, value in merged.model.state_dict().items():
        assert torch.equal(state_dict[name], value), name


def small_int8_llava(device: torch.device = ON_CPU) -> LlavaForConditionalGeneration:
    """Returns small_llava() with its language model in 8 bits."""
    model = small_llava().to(device)
    originals = dict(model.model.language_model.layers.named_modules())
    int8_on_gpu(device, torch.float32).replace(model)
    for name, module in model.model.language_model.layers.named_modules():
        if isinstance(module, Int8Linear):
            module.fill(0, originals[name].weight)
    return model


@pytest.mark.parametrize("options", [{}, {"static_decode": True}, {"static_decode": True, "overlap": True}])
@pytest.mark.parametrize(("lengths", "step_tokens"), [([5, 12, 19, 26, 33], 16), ([150], 200)])
def test_static_decode_and_overlap_give_the_greedy_tokens_of_the_cpu_backend(
    options: dict[str, Any], lengths: list[int], step_tokens: int
) -> None:
    """A prompt of 150 tokens in one step multiplies integers. It is alone, so that steps have the same rows each time.
    Steps of 16 tokens do not, so that several prompts give the same result in any steps."""
    params = SamplingParams(30, ignore_eos=True)
    prompts = [engine_prompt([3 + length] * length, None, params) for length in lengths]
    model, limits = small_int8_llava(), {"max_num_batched_tokens": step_tokens}
    with running(model, CPU, **limits) as engine:
        expected = tokens(answers(engine, *prompts))
    with running(model, TORCH, **limits, **options) as engine:
        assert tokens(answers(engine, *prompts)) == expected


@pytest.mark.parametrize("rows", [3, 100])
def test_a_layer_does_not_wait_for_the_device(rows: int) -> None:
    linear, _ = random_int8(64, 128, 64)
    states = torch.randn(rows, 128)
    with NoWaiting():
        linear(states)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_greedy_tokens_of_a_cpu_in_8_bits() -> None:
    params, device = SamplingParams(30, ignore_eos=True), torch.device("cuda")
    prompts = [engine_prompt([3 + i] * (5 + 7 * i), None, params) for i in range(5)]
    limits = {"max_num_batched_tokens": 16}
    with running(small_int8_llava(), CPU, **limits) as engine:
        expected = tokens(answers(engine, *prompts))
    backend = triton_backend(device)
    with running(small_int8_llava(device), backend, static_decode=True, overlap=True, **limits) as engine:
        assert tokens(answers(engine, *prompts)) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 7, 64, 65, 300])
def test_int8_layers_on_a_gpu(rows: int) -> None:
    linear, _ = random_int8(256, 1024, 96)
    states = torch.randn(rows, 1024)
    (on_gpu,) = Int8Linear.empty_fused([nn.Linear(1024, 256, False, "meta")], torch.device("cuda"), torch.float16)
    on_gpu.weight.copy_(linear.weight)
    on_gpu.scale.copy_(linear.scale)
    assert on_gpu.rounds_inputs
    assert relative_error(on_gpu(states.half().cuda()).cpu(), linear(states).double()) < 5e-3
