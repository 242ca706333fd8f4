"""Writes demo/pictures: one held-out picture of each kind, for the README and for trying the service.

python demo/recipe/samples.py
"""

import random

import easyvqa
from digits import digit_set, draw_digit
from layout import DEMO
from PIL import Image
from scenes import draw_scene

SIDE = 256
SCENES_SEED, DIGITS_SEED = 20_230_418, 20_230_420
DIGIT = 12  # of the digits set aside
EASY_VQA = 7  # of the official test set


def main() -> None:
    folder = DEMO / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    _scene().save(folder / "shapes.png", optimize=True)
    _digit().save(folder / "digit.png", optimize=True)
    easyvqa.picture("test", EASY_VQA).save(folder / "easyvqa.png", optimize=True)


def _scene() -> Image.Image:
    """The first large scene of three different shapes in three different colors."""
    rng = random.Random(SCENES_SEED)
    while True:
        picture, things = draw_scene(rng)
        names = {thing.shape for thing in things} | {thing.color for thing in things}
        if picture.width == SIDE and len(things) == 3 and len(names) == 6:
            return picture


def _digit() -> Image.Image:
    rng = random.Random(DIGITS_SEED)
    while True:
        picture = draw_digit(rng, digit_set("test")[0][DIGIT], bent=False)
        if picture.width == SIDE:
            return picture


if __name__ == "__main__":
    main()
