"""easy-VQA (Victor Zhou, MIT): 64 x 64 pictures of one shape each and questions about it, with an official split."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Literal

import easy_vqa
from PIL import Image

Split = Literal["train", "test"]

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
FOLDER = Path(easy_vqa.__file__).parent / "data"


@cache
def questions(split: Split) -> dict[int, list[tuple[str, str]]]:
    """Questions and answers of each picture, as the set has them."""
    asked: dict[int, list[tuple[str, str]]] = {}
    for text, answer, number in json.loads((FOLDER / split / "questions.json").read_text("utf-8")):
        asked.setdefault(number, []).append((text, answer))
    return asked


def picture(split: Split, number: int) -> Image.Image:
    return Image.open(FOLDER / split / "images" / f"{number}.png").convert("RGB")


def varied(rng: random.Random, image: Image.Image) -> Image.Image:
    """Mirrored at random and moved by a few pixels; the paper is of one color, so the gap is filled with it."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shift = (1, 0, rng.randint(-4, 4), 0, 1, rng.randint(-4, 4))
    return image.transform(image.size, Image.Transform.AFFINE, shift, fillcolor=image.getpixel((0, 0)))


def labels(asked: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """Shape and color as far as the questions and answers of a picture tell them."""
    words: set[str] = set()
    for text, answer in asked:
        denied = " not " in text or " no " in text
        said = text.rstrip("?").split()
        if answer not in ("yes", "no"):
            words |= {answer, *said}
        elif (answer == "no") == denied:
            words |= set(said)
    shape = next((shape for shape in SHAPES if shape in words), None)
    color = next((color for color in COLORS if color in words), None)
    return shape, color
