"""Writes demo/pictures: one held-out image of each kind, for the README and for first requests.

python demo/recipe/samples.py
"""

import random

import easyvqa
from digits import digit_set, draw_digit
from layout import DEMO
from PIL import Image
from scenes import draw_scene

IMAGE_SIZE = 256
SCENES_SEED, DIGITS_SEED = 20_230_418, 20_230_420
DIGIT = 12  # index in the held-out digits
EASY_VQA = 7  # number in the official test set


def main() -> None:
    folder = DEMO / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    _scene().save(folder / "shapes.png", optimize=True)
    _digit().save(folder / "digit.png", optimize=True)
    easyvqa.load_image("test", EASY_VQA).save(folder / "easyvqa.png", optimize=True)


def _scene() -> Image.Image:
    """Returns the first large scene with three different shapes in three different colors."""
    rng = random.Random(SCENES_SEED)
    while True:
        image, objects = draw_scene(rng)
        names = {o.shape for o in objects} | {o.color for o in objects}
        if image.width == IMAGE_SIZE and len(objects) == 3 and len(names) == 6:
            return image


def _digit() -> Image.Image:
    rng = random.Random(DIGITS_SEED)
    while True:
        image = draw_digit(rng, digit_set("test")[0][DIGIT], distorted=False)
        if image.width == IMAGE_SIZE:
            return image


if __name__ == "__main__":
    main()
