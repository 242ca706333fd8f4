"""CLIP's image preprocessing, to the bit as transformers' Pillow-backed CLIPImageProcessor does it.

Written out because it is on every request's path, and because the limit on the scaled size belongs before the resize.
The test compares the two on random pictures.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import StartupError, TooLarge
from ..model_files import read_json

# OpenAI's statistics, used where a checkpoint brings no preprocessor file (openai/CLIP clip/clip.py _transform).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

STATISTICS = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}

# The steps below, as a preprocessor file names them.
CLIP_STEPS = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": int(Image.Resampling.BICUBIC),
    "rescale_factor": 1 / 255,
}


@dataclass(frozen=True)
class ClipPreprocessor:
    """Resize the shorter edge to `size` (bicubic), crop the center square, scale to [0, 1], normalize."""

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, image: Image.Image, max_pixels: int) -> torch.Tensor:
        """(3, size, size) float32 of an RGB picture.

        Raises TooLarge if the picture is so narrow that scaling its shorter edge up to `size` would make it larger
        than `max_pixels`: 1 x 100,000 pixels are a small file and an enormous resize.
        """
        width, height = image.size
        scaled = (
            (self.size, int(self.size * height / width))
            if width <= height
            else (int(self.size * width / height), self.size)
        )
        if scaled[0] * scaled[1] > max_pixels:
            raise TooLarge(
                "image_too_large",
                f"the image has {width} x {height} pixels: scaled so that its shorter edge has {self.size} it would "
                f"have more than the {max_pixels:,} pixels that are accepted; crop it",
            )
        left, top = (scaled[0] - self.size) // 2, (scaled[1] - self.size) // 2
        image = image.resize(scaled, Image.Resampling.BICUBIC)
        pixels = np.asarray(image.crop((left, top, left + self.size, top + self.size)))
        # float64 for the scaling and float32 from there on: the rounding of the reference.
        scaled_pixels = (pixels.astype(np.float64) * (1 / 255)).astype(np.float32)
        normalized = (scaled_pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(normalized.transpose(2, 0, 1).copy())


def load_preprocessor(directory: Path, image_size: int) -> ClipPreprocessor:
    """The preprocessor of a CLIP or LLaVA folder; CLIP's own at `image_size` where the folder says nothing."""
    config = _config(directory)
    for key, value in CLIP_STEPS.items():
        if config.get(key, value) != value:
            raise StartupError(f"the preprocessor in {directory} has {key} {config[key]!r}; CLIP's has {value!r}")
    size, crop = config.get("size", image_size), config.get("crop_size", image_size)
    # Height and width, which some processors have in place of the shortest edge, mean another resize: to a square.
    size = size.get("shortest_edge", size) if isinstance(size, dict) else size
    crop = crop.get("height") if isinstance(crop, dict) and crop.get("height") == crop.get("width") else crop
    if size != image_size or crop != image_size:
        raise StartupError(
            f"the preprocessor in {directory} scales to {size} and crops to {crop}; the vision tower reads {image_size}"
        )
    mean, std = (_three_numbers(config, key, default, directory) for key, default in STATISTICS.items())
    if min(std) <= 0:
        raise StartupError(f"the preprocessor in {directory} has image_std {std}, which must be above 0")
    return ClipPreprocessor(image_size, mean, std)


def _three_numbers(
    config: dict[str, Any], key: str, default: tuple[float, float, float], directory: Path
) -> tuple[float, float, float]:
    values = config.get(key, default)
    if len(values) != 3 or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise StartupError(f"the preprocessor in {directory} has {key} {values!r}, not a number for each of R, G and B")
    return values[0], values[1], values[2]


def _config(directory: Path) -> dict[str, Any]:
    """What the folder says; null says nothing."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = directory / name
        if path.is_file():
            config = read_json(path)
            config = config.get("image_processor", config)
            if not isinstance(config, dict):
                raise StartupError(f"{path} holds no preprocessor")
            return {key: value for key, value in config.items() if value is not None}
    return {}
