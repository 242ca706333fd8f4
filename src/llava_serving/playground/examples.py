"""What the embedded demo model knows, and questions that it answers."""

from pathlib import Path
from typing import NamedTuple

IMAGES = Path(__file__).resolve().parents[3] / "demo" / "pictures"

DEMO_MODEL = (
    "The demo model, which `make serve` runs, is a tiny LLaVA. It knows **shapes** (circle, square, triangle, star, "
    "cross), **colors** (red, green, blue, yellow, purple, orange, black, white), **handwritten digits**, sums of two "
    "digits and a handful of sentences. It answers about one image per question. Its answers about anything else, such "
    "as photographs, mean nothing."
)


class Example(NamedTuple):
    """A question about an image of `demo/pictures`, or a question without an image."""

    question: str
    image: str | None = None

    @property
    def path(self) -> Path | None:
        return None if self.image is None else IMAGES / self.image


EXAMPLES = (
    Example("What is in the image?", "shapes.png"),
    Example("Where is the triangle?", "shapes.png"),
    Example("What digit is this?", "digit.png"),
    Example("What color is the shape?", "easyvqa.png"),
    Example("What is 2 plus 3?"),
    Example("Who are you?"),
)


def available_examples() -> list[Example]:
    """Returns the examples whose images are on this machine: an installed package has no demo folder."""
    return [example for example in EXAMPLES if example.path is None or example.path.is_file()]
