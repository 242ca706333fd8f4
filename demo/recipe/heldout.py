"""Questions that no training step saw: easy-VQA's official test set, new scenes, and digits that were set aside.

Everything is drawn from fixed seeds far from the training's, so that every run asks the same.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple

import easyvqa
from digits import digit_questions, digit_set, draw_digit
from PIL import Image
from scenes import draw_scene, scene_questions

SCENES_SEED, DIGITS_SEED = 987_654_321, 123_456_789
QUESTIONS_A_SCENE = 4


class Example(NamedTuple):
    """One question about one picture; `kind` groups examples in reports."""

    picture: Image.Image
    question: str
    answer: str
    kind: str


def easy_vqa_test() -> Iterator[Example]:
    """All 9,673 questions of the official test set, word for word."""
    for number, asked in easyvqa.questions("test").items():
        picture = easyvqa.picture("test", number)
        for question, answer in asked:
            yield Example(picture, question, answer, "yes/no" if answer in ("yes", "no") else "open")


def new_scenes(n: int) -> Iterator[Example]:
    """Four questions about each of `n` scenes."""
    rng = random.Random(SCENES_SEED)
    for _ in range(n):
        picture, things = draw_scene(rng)
        for question in scene_questions(rng, things)[:QUESTIONS_A_SCENE]:
            yield Example(picture, question.text, question.answer, question.kind)


def unseen_digits() -> Iterator[Example]:
    """Four questions about each of the 360 digits that were set aside, unbent."""
    rng = random.Random(DIGITS_SEED)
    images, digits = digit_set("test")
    for strokes, digit in zip(images, digits, strict=True):
        picture = draw_digit(rng, strokes, bent=False)
        for question in digit_questions(rng, int(digit)):
            yield Example(picture, question.text, question.answer, question.kind)
