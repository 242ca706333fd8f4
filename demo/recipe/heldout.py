"""Questions that no training step used: easy-VQA's official test set, new scenes, and held-out digits.

The seeds are fixed and differ from those of training, so that every run has the same questions.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

import easyvqa
from digits import digit_questions, digit_set, draw_digit
from PIL import Image
from scenes import draw_scene, scene_questions

SCENES_SEED, DIGITS_SEED = 987_654_321, 123_456_789
QUESTIONS_PER_SCENE = 4


class Example(NamedTuple):
    """One question about one image. `kind` groups examples in reports."""

    image: Image.Image
    question: str
    answer: str
    kind: str


def easy_vqa_test() -> Iterator[Example]:
    """Yields all 9,673 questions of the official test set, unchanged."""
    for number, questions in easyvqa.questions("test").items():
        image = easyvqa.load_image("test", number)
        for question, answer in questions:
            yield Example(image, question, answer, "yes/no" if answer in ("yes", "no") else "open")


def new_scenes(count: int) -> Iterator[Example]:
    """Yields four questions about each of `count` scenes."""
    rng = random.Random(SCENES_SEED)
    for _ in range(count):
        image, objects = draw_scene(rng)
        for question in scene_questions(rng, objects)[:QUESTIONS_PER_SCENE]:
            yield Example(image, question.text, question.answer, question.kind)


def unseen_digits() -> Iterator[Example]:
    """Yields four questions about each of the 360 held-out digits, without distortion."""
    rng = random.Random(DIGITS_SEED)
    images, digits = digit_set("test")
    for strokes, digit in zip(images, digits, strict=True):
        image = draw_digit(rng, strokes, distorted=False)
        for question in digit_questions(rng, int(digit)):
            yield Example(image, question.text, question.answer, question.kind)
