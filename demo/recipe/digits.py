"""Handwritten digits (scikit-learn's 1,797) as images, and questions about them.

Four fifths are for training. There are only 1,437 of these, so most training images are distorted a little.
"""

import random
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image
from scenes import Color, Question, through_jpeg
from sklearn.datasets import load_digits

Split = Literal["train", "test"]

CANVASES = (64, 64, 96, 128, 256)
FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)
INK_AND_PAPER: tuple[tuple[Color, Color], ...] = (
    ((245, 245, 245), (25, 25, 25)),
    ((255, 255, 255), (0, 0, 0)),
    ((25, 25, 25), (235, 235, 235)),
    ((0, 0, 0), (255, 255, 255)),
    ((240, 210, 40), (30, 40, 90)),
    ((45, 80, 220), (235, 235, 235)),
    ((220, 40, 40), (235, 235, 235)),
)


@cache
def digit_set(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns images (n, 8, 8) in 0..1 and their digits."""
    digits = load_digits()
    order = np.random.RandomState(0).permutation(len(digits.images))
    cut = int(0.8 * len(order))
    chosen = order[:cut] if split == "train" else order[cut:]
    return digits.images[chosen] / 16, digits.target[chosen]


def draw_digit(rng: random.Random, strokes: np.ndarray, distorted: bool) -> Image.Image:
    """Returns an image of one 8 x 8 digit. `distorted` varies the handwriting."""
    if distorted:
        noise = np.random.RandomState(rng.randrange(1 << 30)).randn(8, 8) * 0.04
        strokes = np.clip(strokes ** rng.uniform(0.7, 1.4) + noise, 0, 1)
    canvas = rng.choice(CANVASES)
    size = round(canvas * rng.uniform(0.68, 1.0))
    small = Image.fromarray((strokes * 255).astype(np.uint8))
    mask = Image.new("L", (canvas, canvas))
    corner = (rng.randint(0, canvas - size), rng.randint(0, canvas - size))
    mask.paste(small.resize((size, size), rng.choices(FILTERS, (5, 3, 2, 2))[0]), corner)
    if distorted:
        mask = _distort(rng, mask)
    ink, paper = rng.choice(INK_AND_PAPER)
    image = Image.composite(Image.new("RGB", mask.size, ink), Image.new("RGB", mask.size, paper), mask)
    return through_jpeg(image, rng.randint(70, 95)) if rng.random() < 0.2 else image


def digit_questions(rng: random.Random, digit: int) -> list[Question]:
    """Returns the four kinds of question about a digit, shuffled."""
    naming = rng.choice(("What digit is this?", "What number is shown?", "Which digit is in the image?"))
    describing = rng.choice(("What is in the image?", "Describe the image."))
    other = digit if rng.random() < 0.5 else rng.choice([d for d in range(10) if d != digit])
    questions = [
        Question("digit", naming, str(digit)),
        Question("describe", describing, f"the digit {digit}"),
        Question("parity", "Is the digit even or odd?", "odd" if digit % 2 else "even"),
        Question("yes/no", f"Is this the digit {other}?", "yes" if other == digit else "no"),
    ]
    rng.shuffle(questions)
    return questions


def _distort(rng: random.Random, mask: Image.Image) -> Image.Image:
    """Rotates, shears and scales the mask a little about its center."""
    angle, shear = rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2)
    rotation = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    matrix = rotation @ np.array(((1, shear), (0, 1))) @ np.diag([rng.uniform(0.9, 1.15), rng.uniform(0.9, 1.15)])
    center = np.full(2, mask.width / 2)
    shift = center - matrix @ center
    coefficients = (*matrix[0], shift[0], *matrix[1], shift[1])
    return mask.transform(mask.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
