"""Pictures of colored shapes, and questions about them that have one right answer.

One to four shapes stand in the quarters of the picture, or one alone in the center. Size, canvas, background and the
file format vary, so that a picture somebody else draws is no surprise.
"""

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Color = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross")
# Two anchors a color: a printed tone and the pure one of the CSS name. A drawn color lies between them.
COLORS: dict[str, tuple[Color, Color]] = {
    "red": ((220, 40, 40), (255, 0, 0)),
    "green": ((40, 170, 60), (0, 128, 0)),
    "blue": ((45, 80, 220), (0, 0, 255)),
    "yellow": ((240, 210, 40), (255, 255, 0)),
    "purple": ((150, 60, 190), (128, 0, 128)),
    "orange": ((245, 140, 30), (255, 165, 0)),
    "black": ((25, 25, 25), (0, 0, 0)),
    "white": ((245, 245, 245), (255, 255, 255)),
}
QUARTERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
CENTER = "center"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNIT = 64  # coordinates are in a 64 x 64 square, whatever the canvas
CANVASES = (64, 64, 64, 96, 128, 128, 200, 256, 400)
LEAST_CONTRAST = 110  # summed over the channels


@dataclass(frozen=True)
class Thing:
    """One shape in a scene."""

    shape: str
    color: str
    place: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{article(self.color)} {self.shape}"


@dataclass(frozen=True)
class Question:
    """A question with its answer; `kind` groups questions in reports."""

    kind: str
    text: str
    answer: str


def draw_scene(rng: random.Random) -> tuple[Image.Image, list[Thing]]:
    """A picture and what it shows, in reading order."""
    background = _background(rng)
    visible = [name for name, anchors in COLORS.items() if _contrast(anchors[0], background) >= LEAST_CONTRAST]
    things = random_things(rng, visible)
    canvas = rng.choice(CANVASES)
    drawn = 2 * canvas if canvas <= 128 and rng.random() < 0.5 else canvas  # half of the small ones without jaggies
    picture = Image.new("RGB", (drawn, drawn), background)
    pen = ImageDraw.Draw(picture)
    for thing in things:
        _draw(pen, thing, drawn / UNIT, _tone(rng, thing.color))
    if drawn != canvas:
        picture = picture.resize((canvas, canvas), Image.Resampling.BOX)
    return (through_jpeg(picture, rng.randint(70, 95)) if rng.random() < 0.2 else picture), things


def random_things(rng: random.Random, colors: list[str]) -> list[Thing]:
    """What a scene shows: up to four shapes, in reading order."""
    count = rng.choice((1, 1, 2, 2, 3, 3, 4))
    if count == 1 and rng.random() < 0.35:
        x, y = (UNIT / 2 + rng.uniform(-4, 4) for _ in "xy")
        return [Thing(rng.choice(SHAPES), rng.choice(colors), CENTER, x, y, rng.uniform(10, 26))]
    taken = rng.sample(list(QUARTERS), count)
    return [_in_quarter(rng, place, colors) for place in QUARTERS if place in taken]


def scene_questions(rng: random.Random, things: list[Thing]) -> list[Question]:
    """Every kind of question the scene has an answer to, shuffled."""
    asked = [*_counting(rng, things), *_attributes(rng, things), _yes_no(rng, things), _yes_no(rng, things)]
    thing = rng.choice(things)
    asked.append(Question("at", f"What is at the {thing.place}?", thing.name))
    text = rng.choice(("What is in the image?", "Describe the image."))
    asked.append(Question("describe", text, ", ".join(thing.name for thing in things)))
    rng.shuffle(asked)
    return asked


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    """The picture as a JPEG file shows it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _in_quarter(rng: random.Random, place: str, colors: list[str]) -> Thing:
    column, row = QUARTERS[place]
    x, y = ((cell + 0.5) * UNIT / 2 + rng.uniform(-2, 2) for cell in (column, row))
    return Thing(rng.choice(SHAPES), rng.choice(colors), place, x, y, rng.uniform(9, 14.5))


def _counting(rng: random.Random, things: list[Thing]) -> list[Question]:
    text = rng.choice(("How many objects are there?", "How many shapes are in the image?", "Count the objects."))
    shape = rng.choice(SHAPES) if rng.random() < 0.4 else rng.choice(things).shape
    count = sum(thing.shape == shape for thing in things)
    return [
        Question("count", text, NUMBERS[len(things)]),
        Question("count shape", f"How many {plural(shape)} are there?", NUMBERS[count]),
    ]


def _attributes(rng: random.Random, things: list[Thing]) -> list[Question]:
    asked = []
    if len(things) == 1:
        [only] = things
        asked.append(Question("shape", rng.choice(("What shape is this?", "What shape is in the image?")), only.shape))
        asked.append(Question("color", rng.choice(("What color is the shape?", "What color is it?")), only.color))
    shapes, colors = [thing.shape for thing in things], [thing.color for thing in things]
    only_of_shape = [thing for thing in things if shapes.count(thing.shape) == 1]
    only_of_color = [thing for thing in things if colors.count(thing.color) == 1]
    if only_of_shape:
        thing = rng.choice(only_of_shape)
        asked.append(Question("color", f"What color is the {thing.shape}?", thing.color))
        thing = rng.choice(only_of_shape)
        asked.append(Question("where", f"Where is the {thing.shape}?", thing.place))
    if only_of_color:
        thing = rng.choice(only_of_color)
        asked.append(Question("shape", f"What shape is {thing.color}?", thing.shape))
    return asked


def _yes_no(rng: random.Random, things: list[Thing]) -> Question:
    """Half are yes; of the others most share a shape or a color with something that is there."""
    if rng.random() < 0.25:
        shape = rng.choice(SHAPES) if rng.random() < 0.5 else rng.choice(things).shape
        there = any(thing.shape == shape for thing in things)
        return Question("yes/no", f"Is there {article(shape)}?", "yes" if there else "no")
    present = {(thing.color, thing.shape) for thing in things}
    thing = rng.choice(things)
    color, shape = thing.color, thing.shape
    if rng.random() < 0.5:
        return Question("yes/no", f"Is there {thing.name}?", "yes")
    while (color, shape) in present:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if rng.random() < 0.6:
            thing = rng.choice(things)
            color, shape = (thing.color, shape) if rng.random() < 0.5 else (color, thing.shape)
    return Question("yes/no", f"Is there {article(color)} {shape}?", "no")


def _background(rng: random.Random) -> Color:
    choice = rng.random()
    if choice < 0.25:
        return (255, 255, 255)
    if choice < 0.3:
        return (0, 0, 0)
    if choice < 0.7:
        gray = rng.randint(175, 240) if choice < 0.55 else rng.randint(95, 140)
        return (gray, gray, gray)
    return (rng.randint(195, 255), rng.randint(195, 255), rng.randint(195, 255))


def _contrast(one: Color, other: Color) -> int:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def _tone(rng: random.Random, color: str) -> Color:
    printed, pure = COLORS[color]
    share = rng.random()
    red, green, blue = (
        max(0, min(255, round(a + share * (b - a)) + rng.randint(-10, 10))) for a, b in zip(printed, pure, strict=True)
    )
    return red, green, blue


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, scale: float, fill: Color) -> None:
    x, y, r = thing.x * scale, thing.y * scale, thing.radius * scale
    if thing.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif thing.shape == "square":
        pen.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=fill)
    elif thing.shape == "triangle":
        pen.polygon(((x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)), fill=fill)
    elif thing.shape == "star":
        pen.polygon([_star_point(x, y, r, k) for k in range(10)], fill=fill)
    else:
        pen.rectangle((x - r, y - 0.34 * r, x + r, y + 0.34 * r), fill=fill)
        pen.rectangle((x - 0.34 * r, y - r, x + 0.34 * r, y + r), fill=fill)


def _star_point(x: float, y: float, radius: float, k: int) -> tuple[float, float]:
    angle, reach = k * math.pi / 5 - math.pi / 2, radius * (1.1 if k % 2 == 0 else 0.45)
    return x + reach * math.cos(angle), y + reach * math.sin(angle)
