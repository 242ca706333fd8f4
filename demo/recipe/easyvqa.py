"""easy-VQA (Victor Zhou, MIT): 64 x 64 images of one shape each, questions about them, and an official split."""

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
    """Returns the questions and answers of each image by its number, unchanged."""
    by_image: dict[int, list[tuple[str, str]]] = {}
    for text, answer, number in json.loads((FOLDER / split / "questions.json").read_text("utf-8")):
        by_image.setdefault(number, []).append((text, answer))
    return by_image


def load_image(split: Split, number: int) -> Image.Image:
    return Image.open(FOLDER / split / "images" / f"{number}.png").convert("RGB")


def augment(rng: random.Random, image: Image.Image) -> Image.Image:
    """Mirrors the image at random and moves it by a few pixels. Fills the gap with the one color of the background."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shift = (1, 0, rng.randint(-4, 4), 0, 1, rng.randint(-4, 4))
    return image.transform(image.size, Image.Transform.AFFINE, shift, fillcolor=image.getpixel((0, 0)))


def labels(questions: list[tuple[str, str]]) -> tuple[str | None, str | None]:
    """Returns shape and color, or None for what the questions and answers of an image do not say."""
    words: set[str] = set()
    for text, answer in questions:
        is_negated = " not " in text or " no " in text
        text_words = text.rstrip("?").split()
        if answer not in ("yes", "no"):
            words |= {answer, *text_words}
        elif (answer == "no") == is_negated:
            words |= set(text_words)
    shape = next((shape for shape in SHAPES if shape in words), None)
    color = next((color for color in COLORS if color in words), None)
    return shape, color
