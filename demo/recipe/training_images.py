"""The training images, drawn once and stored after CLIP's resize and crop.

The vision tower and the language model both learn from this pool. It contains no image or question of a test set.
"""

import pickle
import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import easyvqa
import numpy as np
import torch
from digits import digit_questions, digit_set, draw_digit
from PIL import Image
from scenes import SceneObject, draw_scene, scene_questions

SIZE = 64
SHARES = {"scene": 0.48, "digit": 0.32, "easy-VQA": 0.20}
POOL_SIZE = 80_000
CHUNK_SIZE = 2_000
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


# The objects of a scene, or the kind of image with its digit or its easy-VQA number.
Content = list[SceneObject] | tuple[str, int]


@dataclass(frozen=True)
class ImagePool:
    """Pixels (n, 64, 64, 3) in 0..255, and the content of each image."""

    pixels: np.ndarray
    contents: list[Content]

    @cached_property
    def indices_by_kind(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, content in enumerate(self.contents):
            indices.setdefault("scene" if isinstance(content, list) else content[0], []).append(index)
        return indices


def clip_resize(image: Image.Image) -> np.ndarray:
    """Returns bytes (64, 64, 3) after CLIP's resize and center crop."""
    width, height = image.size
    scale = SIZE / min(width, height)
    image = image.convert("RGB").resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def clip_normalize(pixels: np.ndarray) -> torch.Tensor:
    """Converts bytes (n, 64, 64, 3) to CLIP's input (n, 3, 64, 64)."""
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())


def load_pool(work: Path) -> ImagePool:
    """Returns the pool from the work folder. Two processes draw it if it does not exist."""
    path = work / "images.pickle"
    if not path.exists():
        with ProcessPoolExecutor(2) as workers:
            chunks = list(workers.map(_draw_chunk, range(POOL_SIZE // CHUNK_SIZE)))
        pixels = np.concatenate([chunk.pixels for chunk in chunks])
        pool = ImagePool(pixels, [content for chunk in chunks for content in chunk.contents])
        path.write_bytes(pickle.dumps(pool))
    return pickle.loads(path.read_bytes())  # this function wrote the file


def questions_about(rng: random.Random, content: Content) -> list[tuple[str, str]]:
    """Returns questions and answers about one image of the pool, shuffled."""
    if isinstance(content, list):
        return [(q.text, q.answer) for q in scene_questions(rng, content)]
    kind, number = content
    if kind == "digit":
        return [(q.text, q.answer) for q in digit_questions(rng, number)]
    questions = list(easyvqa.questions("train")[number])
    rng.shuffle(questions)
    # easy-VQA's questions begin with a small letter, and those of people often do not.
    return [(text[0].upper() + text[1:] if rng.random() < 0.25 else text, answer) for text, answer in questions]


def _draw_chunk(seed: int) -> ImagePool:
    rng = random.Random(seed)
    drawn = [_draw_image(rng) for _ in range(CHUNK_SIZE)]
    return ImagePool(np.stack([clip_resize(image) for image, _ in drawn]), [content for _, content in drawn])


def _draw_image(rng: random.Random) -> tuple[Image.Image, Content]:
    [kind] = rng.choices(list(SHARES), list(SHARES.values()))
    if kind == "scene":
        return draw_scene(rng)
    if kind == "digit":
        images, digits = digit_set("train")
        number = rng.randrange(len(images))
        return draw_digit(rng, images[number], distorted=rng.random() < 0.8), (kind, int(digits[number]))
    number = rng.choice(list(easyvqa.questions("train")))
    return easyvqa.augment(rng, easyvqa.load_image("train", number)), (kind, number)
