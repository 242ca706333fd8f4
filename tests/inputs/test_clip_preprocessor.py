"""CLIP's preprocessing: the same pixels as transformers' CLIPImageProcessorPil, and a limit on the resize."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llava_serving.errors import StartupError, TooLarge
from llava_serving.inputs.clip_preprocessor import CLIP_MEAN, CLIP_STD, ClipPreprocessor, load_preprocessor

MANY_PIXELS = 50_000_000
CLIP_FILE = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}

reference = {
    size: CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    for size in (32, 64, 224)
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_equal_to_the_reference(size: int, image: Image.Image) -> None:
    expected = reference[size](image, return_tensors="pt")["pixel_values"][0]
    actual = torch.from_numpy(ClipPreprocessor(size)(image))
    assert actual.dtype == expected.dtype == torch.float32
    assert actual.shape == expected.shape == (3, size, size)
    assert torch.equal(actual, expected)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from((32, 64)),
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_transformers_on_any_picture(size: int, width: int, height: int, seed: int) -> None:
    assert_equal_to_the_reference(size, noise(width, height, seed))


@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from((32, 64)), short=st.sampled_from((1, 2, 3, 4)), long=st.integers(1, 60), upright=st.booleans()
)
def test_equals_transformers_on_pictures_a_few_pixels_wide(size: int, short: int, long: int, upright: bool) -> None:
    assert_equal_to_the_reference(size, noise(short, long) if upright else noise(long, short))


@pytest.mark.parametrize(
    ("width", "height"), [(224, 224), (225, 224), (224, 225), (640, 480), (333, 1000), (3, 5), (1, 1), (223, 447)]
)
def test_equals_transformers_at_224_pixels(width: int, height: int) -> None:
    assert_equal_to_the_reference(224, noise(width, height))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_equals_transformers_on_pictures_of_one_color(value: int) -> None:
    assert_equal_to_the_reference(32, Image.new("RGB", (50, 40), (value, 255 - value, value)))


def test_the_pixels_share_no_memory_with_the_picture_and_are_contiguous() -> None:
    image = noise(32, 32)
    before = image.tobytes()
    pixels = ClipPreprocessor(32)(image)
    pixels.fill(0)
    assert image.tobytes() == before
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)])
def test_a_picture_one_pixel_wide_and_a_million_long_is_refused_by_its_size(size: tuple[int, int]) -> None:
    with pytest.raises(TooLarge) as error_info:
        ClipPreprocessor(224).check_size(*size, MANY_PIXELS)
    assert error_info.value.code == "image_too_large"
    assert f"{size[0]} x {size[1]}" in error_info.value.message
    assert "50,000,000" in error_info.value.message


def test_the_limit_on_pixels_applies_to_the_scaled_picture() -> None:
    ClipPreprocessor(32).check_size(10, 20, 32 * 64)  # scaled to 32 x 64
    ClipPreprocessor(32).check_size(20, 10, 32 * 64)
    for size in ((10, 20), (20, 10)):
        with pytest.raises(TooLarge):
            ClipPreprocessor(32).check_size(*size, 32 * 64 - 1)


def write(directory: Path, name: str, config: Any) -> Path:
    (directory / name).write_text(json.dumps(config), "utf-8")
    return directory


def test_a_folder_without_a_preprocessor_file_has_clip_s_values(tmp_path: Path) -> None:
    assert load_preprocessor(tmp_path, 336) == ClipPreprocessor(336, CLIP_MEAN, CLIP_STD)


def test_clip_s_preprocessor_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {**CLIP_FILE, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]})
    assert load_preprocessor(tmp_path, 224) == ClipPreprocessor(224, (0.1, 0.2, 0.3), (1, 2, 3))


def test_the_preprocessor_file_of_transformers_is_read(tmp_path: Path) -> None:
    CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.1, 0.2, 0.3]
    ).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir())
    assert load_preprocessor(tmp_path, 64) == ClipPreprocessor(64, (0.1, 0.2, 0.3))


def test_the_image_processor_in_a_processor_file_is_read(tmp_path: Path) -> None:
    nested = {
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_std": [1, 2, 3],
        "do_pad": None,
        "resample": None,
    }
    write(tmp_path, "processor_config.json", {"patch_size": 14, "image_processor": nested})
    assert load_preprocessor(tmp_path, 64) == ClipPreprocessor(64, CLIP_MEAN, (1, 2, 3))


def test_the_preprocessor_file_is_read_before_the_processor_file(tmp_path: Path) -> None:
    write(tmp_path, "preprocessor_config.json", {"image_mean": [1, 1, 1]})
    write(tmp_path, "processor_config.json", {"image_processor": {"image_mean": [2, 2, 2]}})
    assert load_preprocessor(tmp_path, 224).mean == (1, 1, 1)


@pytest.mark.parametrize(
    "config",
    [
        {"size": 336, "crop_size": 224},
        {"size": 224, "crop_size": 336},
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 112}},
        {"size": {"height": 224, "width": 224}},  # a resize to a square, not of the shorter edge
    ],
)
def test_a_size_other_than_the_vision_tower_s_is_a_startup_error(tmp_path: Path, config: dict[str, Any]) -> None:
    write(tmp_path, "preprocessor_config.json", config)
    with pytest.raises(StartupError, match=r"scales to .* and crops to .*; the vision tower reads 224"):
        load_preprocessor(tmp_path, 224)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("do_resize", False),
        ("do_center_crop", False),
        ("do_pad", True),
        ("do_rescale", False),
        ("do_normalize", False),
        ("resample", 2),
        ("rescale_factor", 1 / 127.5),
    ],
)
def test_a_step_that_is_not_clip_s_is_a_startup_error(tmp_path: Path, key: str, value: object) -> None:
    write(tmp_path, "preprocessor_config.json", {**CLIP_FILE, key: value})
    with pytest.raises(StartupError, match=key):
        load_preprocessor(tmp_path, 224)


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"image_processor": 3}', "\xff"])
def test_an_invalid_preprocessor_file_is_a_startup_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(StartupError, match=r"preprocessor_config\.json"):
        load_preprocessor(tmp_path, 224)
