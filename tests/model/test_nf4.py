"""NF4 weights: quantized while loading from parts or from a merged folder, and compared with own arithmetic."""

from pathlib import Path

import pytest
import torch
from checkpoints import Shape, write_parts
from demo_answers import assert_demo_answers
from reference import naive_merge, write_merged
from server import Server
from torch import nn

from llava_serving.errors import StartupError
from llava_serving.model.nf4 import NF4Linear
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_folder import MergedFolder, PartsFolder

ROOT = Path(__file__).resolve().parents[2]
# The 16 values of QLoRA, appendix E.
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def dequantized(weight: torch.Tensor) -> torch.Tensor:
    """Returns each weight as the nearest of the 16 values, scaled by the largest of its block of 64."""
    blocks = weight.float().reshape(-1, 64)
    largest = blocks.abs().max(1, keepdim=True).values
    nearest = ((blocks / largest)[..., None] - NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).view(weight.shape)


def random_nf4(out_features: int, in_features: int, step: int) -> tuple[NF4Linear, torch.Tensor]:
    """Returns a layer, filled `step` rows at a time, and its original weight."""
    weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(out_features))
    shape = nn.Linear(in_features, out_features, bias=False, device="meta")
    linear = NF4Linear.empty(shape, torch.device("cpu"))
    for start in range(0, out_features, step):
        linear.fill(start, weight[start : start + step])
    return linear, weight


@pytest.mark.parametrize("rows", [1, 7])
def test_blocks_may_cross_the_rows_of_an_nf4_layer(rows: int) -> None:
    """The demo model's rows have 160 and 432 weights, and a block has 64."""
    linear, weight = random_nf4(96, 160, 96)
    states = torch.randn(rows, 160)
    assert torch.allclose(linear(states), states @ dequantized(weight).T, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("step", [5, 96])
def test_an_nf4_layer_computes_with_the_nearest_of_16_values_in_4_5_bits_per_weight(rows: int, step: int) -> None:
    linear, weight = random_nf4(96, 128, step)
    states = torch.randn(rows, 128)
    assert torch.allclose(linear(states), states @ dequantized(weight).T, atol=1e-4)
    assert linear.packed.nbytes + linear.scales.nbytes == 96 * 128 * 4.5 / 8


def test_fused_nf4_layers_equal_the_separate_ones_and_share_their_memory() -> None:
    linears = [random_nf4(rows, 64, rows)[0] for rows in (64, 32, 32)]
    states = torch.randn(3, 64)
    separate = torch.cat([linear(states) for linear in linears], dim=-1)
    fused = NF4Linear.fuse(linears)
    assert torch.equal(fused(states), separate)
    assert torch.equal(torch.cat([linear(states) for linear in linears], dim=-1), separate)
    assert linears[1].packed.untyped_storage().data_ptr() == fused.packed.untyped_storage().data_ptr()


def test_rows_that_end_within_a_block_are_refused() -> None:
    linear = NF4Linear.empty(nn.Linear(96, 4, device="meta"), torch.device("cpu"))
    with pytest.raises(StartupError, match="LLAVA_QUANTIZATION=none"):
        linear.fill(0, torch.zeros(1, 96))
    with pytest.raises(StartupError, match="5 x 7"):
        NF4Linear.empty(nn.Linear(7, 5, device="meta"), torch.device("cpu"))


def test_nf4_on_several_gpus_is_refused() -> None:
    with pytest.raises(StartupError, match="not with LLAVA_DEVICE=balanced"):
        Settings.from_environment({"LLAVA_QUANTIZATION": "nf4", "LLAVA_DEVICE": "balanced"})


@pytest.fixture(scope="module")
def wide_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random base/, delta/ and vision/ with weights so wide that each is read in several chunks."""
    return write_parts(tmp_path_factory.mktemp("wide"), Shape(hidden=1024, intermediate=4672, heads=8, layers=1))


@pytest.fixture(scope="module")
def nf4_from_parts(wide_parts: Path) -> LoadedModel:
    return load_model(PartsFolder(wide_parts), "cpu", "float32", quantization="nf4")


def test_only_the_linear_layers_of_the_language_model_are_nf4(wide_parts: Path, nf4_from_parts: LoadedModel) -> None:
    merged = naive_merge(wide_parts)
    original = load_model(PartsFolder(wide_parts), "cpu", "float32")
    assert nf4_from_parts.num_parameters == original.num_parameters
    quantized = {name for name, module in nf4_from_parts.model.named_modules() if isinstance(module, NF4Linear)}
    prefix = "model.language_model."
    linears = {name for name, module in original.model.named_modules() if isinstance(module, nn.Linear)}
    assert quantized == {name for name in linears if name.startswith(prefix)}
    for name in quantized:
        expected = dequantized(merged["model." + name.removeprefix(prefix) + ".weight"])
        weight = nf4_from_parts.model.get_submodule(name)(torch.eye(expected.shape[1])).T
        differs = (weight - expected).abs() > 1e-6
        assert differs.float().mean() < 1e-4, name  # weights half way between two of the 16 values
    state_dict = nf4_from_parts.model.state_dict()
    for name, value in original.model.state_dict().items():
        if name.removesuffix(".weight") not in quantized:
            assert torch.equal(state_dict[name], value), name


def test_a_merged_folder_gives_the_same_bits_in_nf4(
    wide_parts: Path, nf4_from_parts: LoadedModel, tmp_path: Path
) -> None:
    merged = load_model(
        MergedFolder(write_merged(wide_parts, tmp_path / "merged")), "cpu", "float32", quantization="nf4"
    ).model.state_dict()
    expected = nf4_from_parts.model.state_dict()
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(merged[name], value), name


@pytest.mark.slow
def test_the_service_answers_in_nf4(tmp_path: Path) -> None:
    with Server(
        log=tmp_path / "log",
        environment={"GUNICORN_CMD_ARGS": "--threads 96", "LLAVA_QUANTIZATION": "nf4"},
    ) as server:
        server.wait_until_healthy()
        assert_demo_answers(server)
        assert "layers in nf4" in server.log


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_nf4_layers_on_a_gpu(rows: int) -> None:
    linear, weight = random_nf4(256, 1024, 96)
    states = torch.randn(rows, 1024)
    on_cuda = linear.to("cuda")(states.half().cuda()).float().cpu()
    assert torch.allclose(on_cuda, states @ dequantized(weight).T, atol=0.3, rtol=0.02)
