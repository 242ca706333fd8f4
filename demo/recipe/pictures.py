"""The training pictures: drawn once, kept as the pixels that CLIP's preprocessing leaves of them.

Both the vision tower and the language model learn from this pool. No picture or question of a test set is read here.
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
from scenes import Thing, draw_scene, scene_questions

SIZE = 64
SHARES = {"scene": 0.48, "digit": 0.32, "easy-VQA": 0.20}
POOL = 80_000
CHUNK = 2_000
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pool:
    """Pixels (n, 64, 64, 3) in 0..255, and for each picture its things, its digit or its easy-VQA number."""

    pixels: np.ndarray
    shown: list[list[Thing] | tuple[str, int]]

    @cached_property
    def of_kind(self) -> dict[str, list[int]]:
        """The pictures of each kind."""
        kinds: dict[str, list[int]] = {}
        for i, shown in enumerate(self.shown):
            kinds.setdefault("scene" if isinstance(shown, list) else shown[0], []).append(i)
        return kinds


def resized(picture: Image.Image) -> np.ndarray:
    """(64, 64, 3) bytes: CLIP's resize and center crop."""
    width, height = picture.size
    scale = SIZE / min(width, height)
    picture = picture.convert("RGB").resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - SIZE) // 2, (picture.height - SIZE) // 2
    return np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))


def normalized(pixels: np.ndarray) -> torch.Tensor:
    """(n, 3, 64, 64) of bytes (n, 64, 64, 3), scaled as CLIP reads them."""
    scaled = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())


def pool(work: Path) -> Pool:
    """The pool, drawn by two processes on the first call."""
    path = work / "pictures.pickle"
    if not path.exists():
        with ProcessPoolExecutor(2) as workers:
            chunks = list(workers.map(_chunk, range(POOL // CHUNK)))
        pixels = np.concatenate([chunk.pixels for chunk in chunks])
        drawn = Pool(pixels, [shown for chunk in chunks for shown in chunk.shown])
        path.write_bytes(pickle.dumps(drawn))
    return pickle.loads(path.read_bytes())  # our own file


def questions_about(rng: random.Random, shown: list[Thing] | tuple[str, int]) -> list[tuple[str, str]]:
    """Questions and answers about one picture of the pool, shuffled."""
    if isinstance(shown, list):
        return [(q.text, q.answer) for q in scene_questions(rng, shown)]
    kind, number = shown
    if kind == "digit":
        return [(q.text, q.answer) for q in digit_questions(rng, number)]
    asked = list(easyvqa.questions("train")[number])
    rng.shuffle(asked)
    # The set writes in lower case; people often do not.
    return [(text[0].upper() + text[1:] if rng.random() < 0.25 else text, answer) for text, answer in asked]


def _chunk(seed: int) -> Pool:
    rng = random.Random(seed)
    drawn = [_training_picture(rng) for _ in range(CHUNK)]
    return Pool(np.stack([resized(picture) for picture, _ in drawn]), [shown for _, shown in drawn])


def _training_picture(rng: random.Random) -> tuple[Image.Image, list[Thing] | tuple[str, int]]:
    [kind] = rng.choices(list(SHARES), list(SHARES.values()))
    if kind == "scene":
        return draw_scene(rng)
    if kind == "digit":
        images, digits = digit_set("train")
        number = rng.randrange(len(images))
        return draw_digit(rng, images[number], bent=rng.random() < 0.8), (kind, int(digits[number]))
    number = rng.choice(list(easyvqa.questions("train")))
    return easyvqa.varied(rng, easyvqa.picture("train", number)), (kind, number)
