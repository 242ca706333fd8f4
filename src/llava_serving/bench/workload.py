"""What a load test asks: questions and pictures made up from a seed, before any clock starts."""

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from .caller import Target

WORKLOADS = ("text", "image", "mixed", "shared-image")
SUBJECTS = ("color", "shape", "number", "size", "place", "mood", "light", "background", "foreground", "left half")


@dataclass(frozen=True)
class Question:
    """`workload` is one of WORKLOADS: mixed is every other one with a picture, shared-image one picture for all.

    `output_tokens` are the least and the most tokens of an answer, each length as likely as any other.
    """

    workload: str
    image_size: int
    output_tokens: tuple[int, int]


def bodies(target: Target, model: str, question: Question, count: int, seed: int) -> Iterator[bytes]:
    """`count` request bodies, the same for the same seed."""
    chosen = random.Random(f"workload {seed}")
    shared = picture(chosen, question.image_size)
    for number in range(count):
        tokens = chosen.randint(*question.output_tokens)
        text = f"What is the {chosen.choice(SUBJECTS)} of this, and why? ({number})"
        image = None
        if question.workload == "shared-image":
            image = shared
        elif question.workload == "image" or (question.workload == "mixed" and number % 2 == 0):
            image = picture(chosen, question.image_size)
        # A prefix cache shares what comes first, which a shared picture therefore does.
        first = question.workload == "shared-image"
        if target.api == "openai":
            yield json.dumps(_chat_completion(text, image, first, tokens) | _openai(target, model)).encode()
        else:
            yield json.dumps(_prompts(text, image, first, tokens, target.stream)).encode()


def picture(chosen: random.Random, size: int) -> str:
    """A PNG of ten rectangles in base64, hardly ever the same twice."""
    image = Image.new("RGB", (size, size), _color(chosen))
    draw = ImageDraw.Draw(image)
    for _ in range(10):
        left, top = chosen.randrange(size), chosen.randrange(size)
        right, bottom = left + chosen.randrange(1, size), top + chosen.randrange(1, size)
        draw.rectangle((left, top, right, bottom), fill=_color(chosen))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _color(chosen: random.Random) -> tuple[int, int, int]:
    return chosen.randrange(256), chosen.randrange(256), chosen.randrange(256)


def _openai(target: Target, model: str) -> dict[str, Any]:
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if target.stream else {}
    return {"model": model, **streaming}


def _prompts(text: str, image: str | None, image_first: bool, tokens: int, stream: bool) -> dict[str, Any]:
    parameters = {"max_new_tokens": tokens, "ignore_eos": True, "template": "v0", "stream": stream}
    text = f"<image>\n{text}" if image_first else text
    return {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}


def _chat_completion(text: str, image: str | None, image_first: bool, tokens: int) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        url = {"url": f"data:image/png;base64,{image}"}
        parts.insert(0 if image_first else 1, {"type": "image_url", "image_url": url})
    return {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": tokens, "ignore_eos": True}
