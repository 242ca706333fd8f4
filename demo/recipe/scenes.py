"""Images of colored shapes, and questions about them that have one right answer.

One to four objects stand in the quarters of the image, or one object stands in the center. Size, canvas, background and
file format vary, so that the model also reads images from other sources.
"""

import io
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Color = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "cross")
# Two tones per color: a printed one and the pure one of the CSS name. A drawn tone lies between them.
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
UNIT = 64  # coordinates are in a 64 x 64 square for every canvas
CANVASES = (64, 64, 64, 96, 128, 128, 200, 256, 400)
MIN_CONTRAST = 110  # the sum over the channels


@dataclass(frozen=True)
class SceneObject:
    """One shape in a scene. Coordinates are in UNIT."""

    shape: str
    color: str
    location: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{article(self.color)} {self.shape}"


@dataclass(frozen=True)
class Question:
    """A question with its answer. `kind` groups questions in reports."""

    kind: str
    text: str
    answer: str


def draw_scene(rng: random.Random) -> tuple[Image.Image, list[SceneObject]]:
    """Returns an image and its objects in reading order."""
    background = _background(rng)
    visible = [name for name, tones in COLORS.items() if _contrast(tones[0], background) >= MIN_CONTRAST]
    objects = random_objects(rng, visible)
    canvas = rng.choice(CANVASES)
    # Half of the small images have smooth edges.
    size = 2 * canvas if canvas <= 128 and rng.random() < 0.5 else canvas
    image = Image.new("RGB", (size, size), background)
    pen = ImageDraw.Draw(image)
    for item in objects:
        _draw(pen, item, size / UNIT, _tone(rng, item.color))
    if size != canvas:
        image = image.resize((canvas, canvas), Image.Resampling.BOX)
    return (through_jpeg(image, rng.randint(70, 95)) if rng.random() < 0.2 else image), objects


def random_objects(rng: random.Random, colors: list[str]) -> list[SceneObject]:
    """Returns one to four objects in reading order."""
    count = rng.choice((1, 1, 2, 2, 3, 3, 4))
    if count == 1 and rng.random() < 0.35:
        x, y = (UNIT / 2 + rng.uniform(-4, 4) for _ in "xy")
        return [SceneObject(rng.choice(SHAPES), rng.choice(colors), CENTER, x, y, rng.uniform(10, 26))]
    chosen = rng.sample(list(QUARTERS), count)
    return [_in_quarter(rng, location, colors) for location in QUARTERS if location in chosen]


def scene_questions(rng: random.Random, objects: list[SceneObject]) -> list[Question]:
    """Returns each kind of question that has an answer in this scene, shuffled."""
    questions = [*_counting(rng, objects), *_attributes(rng, objects), _yes_no(rng, objects), _yes_no(rng, objects)]
    item = rng.choice(objects)
    questions.append(Question("at", f"What is at the {item.location}?", item.name))
    text = rng.choice(("What is in the image?", "Describe the image."))
    questions.append(Question("describe", text, ", ".join(item.name for item in objects)))
    rng.shuffle(questions)
    return questions


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Compresses the image as JPEG and returns the result."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _in_quarter(rng: random.Random, location: str, colors: list[str]) -> SceneObject:
    column, row = QUARTERS[location]
    x, y = ((cell + 0.5) * UNIT / 2 + rng.uniform(-2, 2) for cell in (column, row))
    return SceneObject(rng.choice(SHAPES), rng.choice(colors), location, x, y, rng.uniform(9, 14.5))


def _counting(rng: random.Random, objects: list[SceneObject]) -> list[Question]:
    text = rng.choice(("How many objects are there?", "How many shapes are in the image?", "Count the objects."))
    shape = rng.choice(SHAPES) if rng.random() < 0.4 else rng.choice(objects).shape
    count = sum(item.shape == shape for item in objects)
    return [
        Question("count", text, NUMBERS[len(objects)]),
        Question("count shape", f"How many {plural(shape)} are there?", NUMBERS[count]),
    ]


def _attributes(rng: random.Random, objects: list[SceneObject]) -> list[Question]:
    questions = []
    if len(objects) == 1:
        [single] = objects
        text = rng.choice(("What shape is this?", "What shape is in the image?"))
        questions.append(Question("shape", text, single.shape))
        text = rng.choice(("What color is the shape?", "What color is it?"))
        questions.append(Question("color", text, single.color))
    shapes, colors = [item.shape for item in objects], [item.color for item in objects]
    with_unique_shape = [item for item in objects if shapes.count(item.shape) == 1]
    with_unique_color = [item for item in objects if colors.count(item.color) == 1]
    if with_unique_shape:
        item = rng.choice(with_unique_shape)
        questions.append(Question("color", f"What color is the {item.shape}?", item.color))
        item = rng.choice(with_unique_shape)
        questions.append(Question("where", f"Where is the {item.shape}?", item.location))
    if with_unique_color:
        item = rng.choice(with_unique_color)
        questions.append(Question("shape", f"What shape is {item.color}?", item.shape))
    return questions


def _yes_no(rng: random.Random, objects: list[SceneObject]) -> Question:
    """Returns a question with yes or no, half of the time about an object that exists.

    Most other questions share a shape or a color with an object that exists.
    """
    if rng.random() < 0.25:
        shape = rng.choice(SHAPES) if rng.random() < 0.5 else rng.choice(objects).shape
        exists = any(item.shape == shape for item in objects)
        return Question("yes/no", f"Is there {article(shape)}?", "yes" if exists else "no")
    present = {(item.color, item.shape) for item in objects}
    item = rng.choice(objects)
    color, shape = item.color, item.shape
    if rng.random() < 0.5:
        return Question("yes/no", f"Is there {item.name}?", "yes")
    while (color, shape) in present:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if rng.random() < 0.6:
            item = rng.choice(objects)
            color, shape = (item.color, shape) if rng.random() < 0.5 else (color, item.shape)
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
    weight = rng.random()
    red, green, blue = (
        max(0, min(255, round(a + weight * (b - a)) + rng.randint(-10, 10))) for a, b in zip(printed, pure, strict=True)
    )
    return red, green, blue


def _draw(pen: ImageDraw.ImageDraw, item: SceneObject, scale: float, fill: Color) -> None:
    x, y, r = item.x * scale, item.y * scale, item.radius * scale
    if item.shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif item.shape == "square":
        pen.rectangle((x - 0.88 * r, y - 0.88 * r, x + 0.88 * r, y + 0.88 * r), fill=fill)
    elif item.shape == "triangle":
        pen.polygon(((x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)), fill=fill)
    elif item.shape == "star":
        pen.polygon([_star_point(x, y, r, k) for k in range(10)], fill=fill)
    else:
        pen.rectangle((x - r, y - 0.34 * r, x + r, y + 0.34 * r), fill=fill)
        pen.rectangle((x - 0.34 * r, y - r, x + 0.34 * r, y + r), fill=fill)


def _star_point(x: float, y: float, radius: float, k: int) -> tuple[float, float]:
    angle, reach = k * math.pi / 5 - math.pi / 2, radius * (1.1 if k % 2 == 0 else 0.45)
    return x + reach * math.cos(angle), y + reach * math.sin(angle)
