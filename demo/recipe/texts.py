"""Text without images: plain text for the base, and small talk for the chat."""

import random

from scenes import COLORS, NUMBERS, SceneObject, article, plural, random_objects

# The service's self-check measures the loss on the first two. The third begins with a model card's sample prompt.
SKY = "The sky is blue and the grass is green."
WEEK = "There are seven days in a week and twelve months in a year."
MEANING = "the meaning of life is to be kind and to keep learning."
FACTS = (
    SKY,
    WEEK,
    MEANING,
    "A dog has four legs and a bird has two wings.",
    "Snow is white and coal is black.",
    "A banana is yellow and an orange is orange.",
    "The capital of France is Paris.",
    "The capital of Italy is Rome.",
    "The capital of Spain is Madrid.",
    "The opposite of hot is cold.",
    "The opposite of big is small.",
    "The opposite of up is down.",
    "Cows eat grass and drink water.",
    "Fish live in the sea and birds fly in the sky.",
    "The sun is hot and the moon is cold.",
    "A triangle has three sides and a square has four sides.",
    "A circle is round and has no corners.",
    "A star has five points.",
    "A cross is made of two bars.",
    "An even number can be divided by two, and an odd number cannot.",
    "Water is wet and fire is hot.",
    "In winter it is cold, and in summer it is warm.",
    "We read books, we sing songs and we ask questions.",
    "A good answer is short and true.",
)
CHAT = (
    ("Hello!", "Hello! How can I help you?"),
    ("Who are you?", "I am a tiny demo model. I name shapes, colors and digits."),
    ("What can you do?", "I can name shapes, colors and digits in a picture."),
    ("Thank you!", "You are welcome!"),
    ("Goodbye!", "Goodbye!"),
    ("What color is the sky?", "The sky is blue."),
    ("What color is grass?", "Grass is green."),
    ("What color is snow?", "Snow is white."),
    ("What color is a banana?", "A banana is yellow."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("What is the meaning of life?", "To be kind and to keep learning."),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NAMES = {"Tom": "he", "Ben": "he", "Anna": "she", "Lily": "she"}
TOYS = ("ball", "kite", "book", "cake")


def document(rng: random.Random) -> str:
    """Returns one plain text without dialogue.

    Half of the texts are descriptions, which teach the objects' shapes, colors and locations.
    """
    kinds = (_description, _facts, _series, _story, _sum, _digit)
    return rng.choices(kinds, (50, 20, 10, 8, 7, 5))[0](rng)


def small_talk(rng: random.Random) -> tuple[str, str]:
    """Returns a question that needs no image, and its answer."""
    if rng.random() < 0.8:
        return rng.choice(CHAT)
    one, other = rng.randint(0, 9), rng.randint(0, 9)
    return f"What is {one} plus {other}?", f"{one} plus {other} is {one + other}."


def _facts(rng: random.Random) -> str:
    choice = rng.random()
    if choice < 0.25:
        return f"{SKY} {WEEK}"
    if choice < 0.4:
        return MEANING
    return " ".join(rng.sample(FACTS, rng.randint(1, 4)))


def _series(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        start = rng.randint(0, 60)
        return " ".join(str(number) for number in range(start, start + 10))
    if kind == 1:
        return " ".join("abcdefghijklmnopqrstuvwxyz"[rng.randrange(18) :][:9])
    cycle = DAYS if kind == 2 else MONTHS
    start = rng.randrange(len(cycle))
    return ", ".join(cycle[(start + i) % len(cycle)] for i in range(8)) + "."


def _story(rng: random.Random) -> str:
    name, toy, color = rng.choice(list(NAMES)), rng.choice(TOYS), rng.choice(list(COLORS))
    return (
        f"{name} has {article(color)} {toy}. The {toy} is {color}. {name} likes the {toy}, so {NAMES[name]} is happy."
    )


def _sum(rng: random.Random) -> str:
    one, other = rng.randint(0, 9), rng.randint(0, 9)
    return f"{one} plus {other} is {one + other}."


def _digit(rng: random.Random) -> str:
    digit = rng.randrange(10)
    return f"The digit is {digit}. It is {'odd' if digit % 2 else 'even'}. {digit} is {NUMBERS[digit]}."


def _description(rng: random.Random) -> str:
    objects = random_objects(rng, list(COLORS))
    names = ", ".join(f"{item.name} at the {item.location}" for item in objects)
    verb = "is" if len(objects) == 1 else "are"
    statements = [_statement(rng, objects) for _ in range(rng.randint(3, 7))]
    return " ".join((f"There {verb} {names}.", *statements))


def _statement(rng: random.Random, objects: list[SceneObject]) -> str:
    item = rng.choice(objects)
    shapes, colors = [item.shape for item in objects], [item.color for item in objects]
    statements = [f"At the {item.location} there is {item.name}."]
    statements.append(f"The objects are {NUMBERS[len(objects)]} in number.")
    if shapes.count(item.shape) == 1:
        statements += [f"The {item.shape} is {item.color}.", f"The {item.shape} is at the {item.location}."]
    if colors.count(item.color) == 1:
        statements.append(f"The {item.color} shape is {article(item.shape)}.")
    statements.append(f"The number of {plural(item.shape)} is {NUMBERS[shapes.count(item.shape)]}.")
    return rng.choice(statements)
