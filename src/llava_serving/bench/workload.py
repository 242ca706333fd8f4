"""The request bodies of a load test, made from a seed before the clock starts."""

import base64
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from .request import Target

WORKLOADS = ("text", "image", "mixed", "shared-image")
SUBJECTS = ("color", "shape", "number", "size", "place", "mood", "light", "background", "foreground", "left half")


@dataclass(frozen=True)
class Workload:
    """Settings of the requests.

    `kind` is one of WORKLOADS: "mixed" has an image in every other request, "shared-image" one image for all requests.
    `image_size` is in pixels. `output_tokens` are the minimum and maximum length of an answer, drawn uniformly.
    """

    kind: str
    image_size: int
    output_tokens: tuple[int, int]


def request_bodies(target: Target, model: str, workload: Workload, count: int, seed: int) -> Iterator[bytes]:
    """Yields `count` request bodies, the same for the same seed. `model` is a field of the `openai` form."""
    rng = random.Random(f"workload {seed}")
    shared_image = random_image(rng, workload.image_size)
    is_shared = workload.kind == "shared-image"
    for index in range(count):
        tokens = rng.randint(*workload.output_tokens)
        text = f"What is the {rng.choice(SUBJECTS)} of this, and why? ({index})"
        image = None
        if is_shared:
            image = shared_image
        elif workload.kind == "image" or (workload.kind == "mixed" and index % 2 == 0):
            image = random_image(rng, workload.image_size)
        # A prefix cache shares only the beginning of prompts, so a shared image stands before the text.
        if target.api == "openai":
            body = _chat_completion(text, image, is_shared, tokens) | _openai_options(target, model)
        else:
            body = _score_body(text, image, is_shared, tokens, target.stream)
        yield json.dumps(body).encode()


def random_image(rng: random.Random, size: int) -> str:
    """Returns a PNG in base64: ten random rectangles on `size` x `size` pixels."""
    image = Image.new("RGB", (size, size), _random_color(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(10):
        left, top = rng.randrange(size), rng.randrange(size)
        right, bottom = left + rng.randrange(1, size), top + rng.randrange(1, size)
        draw.rectangle((left, top, right, bottom), fill=_random_color(rng))
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _random_color(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _openai_options(target: Target, model: str) -> dict[str, Any]:
    streaming = {"stream": True, "stream_options": {"include_usage": True}} if target.stream else {}
    return {"model": model, **streaming}


def _score_body(text: str, image: str | None, image_first: bool, tokens: int, stream: bool) -> dict[str, Any]:
    parameters = {"max_new_tokens": tokens, "ignore_eos": True, "template": "v0", "stream": stream}
    text = f"<image>\n{text}" if image_first else text
    return {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}}


def _chat_completion(text: str, image: str | None, image_first: bool, tokens: int) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        url = {"url": f"data:image/png;base64,{image}"}
        content.insert(0 if image_first else 1, {"type": "image_url", "image_url": url})
    return {"messages": [{"role": "user", "content": content}], "max_completion_tokens": tokens, "ignore_eos": True}
