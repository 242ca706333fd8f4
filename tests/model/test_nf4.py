"""4-bit weights: packed while loading, by either way in, and held against arithmetic of our own."""

from pathlib import Path

import pytest
import torch
from checkpoints import Shape, write_parts
from PIL import Image
from reference import naive_merge, write_merged
from server import Server, as_base64
from torch import nn

from llava_serving.errors import StartupError
from llava_serving.model.nf4 import PackedLinear
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel, load_model
from llava_serving.weights.model_dir import MergedCheckpoint, ModelParts

ROOT = Path(__file__).resolve().parents[2]
# QLoRA, appendix E.
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def as_packed(weight: torch.Tensor) -> torch.Tensor:
    """What is left of a weight: each the nearest of 16 values, scaled by the largest of its 64."""
    blocks = weight.float().reshape(-1, 64)
    largest = blocks.abs().max(1, keepdim=True).values
    nearest = ((blocks / largest)[..., None] - NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).view(weight.shape)


def packed(out: int, into: int, step: int) -> tuple[PackedLinear, torch.Tensor]:
    """A map, filled `step` rows at a time, and its weight."""
    weight = torch.randn(out, into, generator=torch.Generator().manual_seed(out))
    linear = PackedLinear.empty(nn.Linear(into, out, bias=False, device="meta"), torch.device("cpu"))
    for start in range(0, out, step):
        linear.fill(start, weight[start : start + step])
    return linear, weight


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("step", [5, 96])
def test_a_packed_map_is_the_map_of_the_nearest_of_16_values(rows: int, step: int) -> None:
    linear, weight = packed(96, 128, step)
    states = torch.randn(rows, 128)
    assert torch.allclose(linear(states), states @ as_packed(weight).T, atol=1e-4)
    assert linear.packed.nbytes + linear.scales.nbytes == 96 * 128 * 4.5 / 8


def test_joined_maps_give_what_each_gives_and_share_its_memory() -> None:
    parts = [packed(out, 64, out)[0] for out in (64, 32, 32)]
    states = torch.randn(3, 64)
    apart = torch.cat([part(states) for part in parts], dim=-1)
    whole = PackedLinear.joined(parts)
    assert torch.equal(whole(states), apart)
    assert torch.equal(torch.cat([part(states) for part in parts], dim=-1), apart)
    assert parts[1].packed.untyped_storage().data_ptr() == whole.packed.untyped_storage().data_ptr()


def test_rows_that_end_within_a_block_are_refused() -> None:
    linear = PackedLinear.empty(nn.Linear(96, 4, device="meta"), torch.device("cpu"))
    with pytest.raises(StartupError, match="LLAVA_QUANTIZATION=none"):
        linear.fill(0, torch.zeros(1, 96))
    with pytest.raises(StartupError, match="5 x 7"):
        PackedLinear.empty(nn.Linear(7, 5, device="meta"), torch.device("cpu"))


def test_a_model_on_several_gpus_is_not_packed() -> None:
    with pytest.raises(StartupError, match="not with LLAVA_DEVICE=balanced"):
        Settings.from_environment({"LLAVA_QUANTIZATION": "nf4", "LLAVA_DEVICE": "balanced"})


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random parts_dir whose weights are read in several pieces."""
    return write_parts(tmp_path_factory.mktemp("wide"), Shape(hidden=1024, intermediate=4672, heads=8, layers=1))


@pytest.fixture(scope="module")
def from_trio(wide: Path) -> LoadedModel:
    return load_model(ModelParts(wide), "cpu", "float32", quantization="nf4")


def test_the_layers_are_packed_and_nothing_else(wide: Path, from_trio: LoadedModel) -> None:
    merged = naive_merge(wide)
    whole = load_model(ModelParts(wide), "cpu", "float32")
    assert from_trio.parameters == whole.parameters
    maps = {name for name, module in from_trio.model.named_modules() if isinstance(module, PackedLinear)}
    prefix = "model.language_model."
    linears = {name for name, module in whole.model.named_modules() if isinstance(module, nn.Linear)}
    assert maps == {name for name in linears if name.startswith(prefix)}
    for name in maps:
        weight = as_packed(merged["model." + name.removeprefix(prefix) + ".weight"])
        unpacked = from_trio.model.get_submodule(name)(torch.eye(weight.shape[1])).T
        other = (unpacked - weight).abs() > 1e-6
        assert other.float().mean() < 1e-4, name  # of those half way between two values
    kept = from_trio.model.state_dict()
    for name, value in whole.model.state_dict().items():
        if name.removesuffix(".weight") not in maps:
            assert torch.equal(kept[name], value), name


def test_a_merged_folder_gives_the_same_bits(wide: Path, from_trio: LoadedModel, tmp_path: Path) -> None:
    merged = load_model(
        MergedCheckpoint(write_merged(wide, tmp_path / "merged")), "cpu", "float32", quantization="nf4"
    ).model.state_dict()
    expected = from_trio.model.state_dict()
    assert merged.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(merged[name], value), name


@pytest.mark.slow
def test_the_service_answers_in_4_bits(tmp_path: Path) -> None:
    with Server(
        log=tmp_path / "log",
        environment={"GUNICORN_CMD_ARGS": "--threads 96", "LLAVA_QUANTIZATION": "nf4"},
    ) as server:
        server.wait_until_healthy()
        body = {"input_data": {"input_string": ["the meaning of life is"] * 3, "parameters": {"n": 2}}}
        row = {str(i): "the meaning of life is to be kind and to keep learning." for i in range(2)}
        assert server.score(body).json == [row] * 3
        picture = as_base64(Image.open(ROOT / "demo" / "pictures" / "shapes.png"))
        asked = {"input_data": {"input_string": ["What is in the image?"], "images": [picture]}}
        assert server.score(asked).json == [{"0": "a red circle, a blue cross, a yellow triangle"}]
        assert "layers in nf4" in server.log


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_packed_maps_on_cuda(rows: int) -> None:
    linear, weight = packed(256, 1024, 96)
    states = torch.randn(rows, 1024)
    on_cuda = linear.to("cuda")(states.half().cuda()).float().cpu()
    assert torch.allclose(on_cuda, states @ as_packed(weight).T, atol=0.3, rtol=0.02)
