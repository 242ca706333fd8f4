"""What the model knows without a picture: plain text for the base, and small talk for the chat."""

import random

from scenes import COLORS, NUMBERS, Thing, article, plural, random_things

# The service measures the loss on the first two before it reports healthy; a model card's sample prompt begins the
# third.
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
    """One plain text, no dialogue. Descriptions are half of them: they teach what belongs to what."""
    kinds = (_description, _facts, _order, _story, _sum, _digit)
    return rng.choices(kinds, (50, 20, 10, 8, 7, 5))[0](rng)


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A question without a picture and its answer."""
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


def _order(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        start = rng.randint(0, 60)
        return " ".join(str(number) for number in range(start, start + 10))
    if kind == 1:
        return " ".join("abcdefghijklmnopqrstuvwxyz"[rng.randrange(18) :][:9])
    ring = DAYS if kind == 2 else MONTHS
    start = rng.randrange(len(ring))
    return ", ".join(ring[(start + i) % len(ring)] for i in range(8)) + "."


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
    things = random_things(rng, list(COLORS))
    listed = ", ".join(f"{thing.name} at the {thing.place}" for thing in things)
    verb = "is" if len(things) == 1 else "are"
    said = [_statement(rng, things) for _ in range(rng.randint(3, 7))]
    return " ".join((f"There {verb} {listed}.", *said))


def _statement(rng: random.Random, things: list[Thing]) -> str:
    thing = rng.choice(things)
    shapes, colors = [thing.shape for thing in things], [thing.color for thing in things]
    said = [f"At the {thing.place} there is {thing.name}.", f"The objects are {NUMBERS[len(things)]} in number."]
    if shapes.count(thing.shape) == 1:
        said += [f"The {thing.shape} is {thing.color}.", f"The {thing.shape} is at the {thing.place}."]
    if colors.count(thing.color) == 1:
        said.append(f"The {thing.color} shape is {article(thing.shape)}.")
    said.append(f"The number of {plural(thing.shape)} is {NUMBERS[shapes.count(thing.shape)]}.")
    return rng.choice(said)
