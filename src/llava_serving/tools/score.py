"""`llava-serving score`: asks an endpoint, one of Azure's or this machine's.

  llava-serving score --url http://127.0.0.1:5001/score --image cat.png "What is this?"
  llava-serving score --url URL --entra --stream "the meaning of life is"
  llava-serving score --url URL --file request.json --output json

The key is read from AZUREML_ENDPOINT_KEY, so that no process list shows it; --entra takes a Microsoft Entra token.
Where the endpoint is busy (429, 503, or Azure's 424 around one) it is asked again when it says.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..client.access import KEY_VARIABLE, entra_token
from ..client.answer_texts import texts
from ..client.endpoint import Endpoint
from ..client.endpoint_error import EndpointError
from ..client.request_body import ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*")
    parser.add_argument(
        "--url", required=True, help="the scoring URI: https://NAME.REGION.inference.ml.azure.com/score"
    )
    parser.add_argument("--entra", action="store_true", help="authenticate with a Microsoft Entra token")
    parser.add_argument("--deployment", help="one of the endpoint's, past its traffic rules")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="of the prompt; several prompts have one each, or share one",
    )  # fmt: skip
    parser.add_argument("--file", metavar="FILE", help="a body as it stands, in place of prompts; - is standard input")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="max_new_tokens=64, stop='[\"#\"]', ..."
    )
    parser.add_argument("--stream", action="store_true", help="print the text as it comes")
    parser.add_argument(
        "--output", choices=("text", "table", "json"), default="text",
        help="table tells rows and sequences by number; json is the answer's body, or of a stream its events",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=180.0, metavar="SECONDS",
        help="longest silence of the endpoint in a try, by default 180",
    )  # fmt: skip
    parser.add_argument(
        "--retries", type=int, default=4, help="how often a busy endpoint is asked again, by default 4 times"
    )


def run(arguments: argparse.Namespace) -> int:
    """The exit status: 0, 1 where there is no answer, 2 for a request that cannot be made."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal has no character for ends nothing
    token = entra_token if arguments.entra else os.environ.get(KEY_VARIABLE) or None
    try:
        if arguments.stream and arguments.output == "table":
            raise ValueError("--output table is for whole answers: --stream prints text, or events as json")
        body = _body(arguments)
        endpoint = Endpoint(arguments.url, token, arguments.deployment, arguments.timeout, arguments.retries)
    except (OSError, ValueError) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    try:
        if arguments.stream:
            _tell_stream(endpoint.stream(body), arguments.output)
        else:
            _tell(endpoint.score(body).body, arguments.output)
    except EndpointError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    return 0


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    if bool(arguments.prompt) == (arguments.file is not None):
        raise ValueError("give prompts, or a body with --file")
    if arguments.file is None:
        parameters = dict(map(_parameter, arguments.parameter))
        for name in {"prompts", "images"} & parameters.keys():
            raise ValueError(f"{name} is no parameter; the prompts are arguments, and --image takes a picture")
        return ask(arguments.prompt, arguments.image, **parameters)
    if arguments.image or arguments.parameter:
        raise ValueError("a body with --file has its images and parameters in it")
    return _read(arguments.file)


def _read(name: str) -> dict[str, Any]:
    """A body from a file or, as -, from standard input."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
        body = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not one JSON value ({error}); llava-serving batch reads lines of them") from None
    if not isinstance(body, dict):
        raise ValueError(f"{name} is no JSON object")
    return body


def _parameter(given: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is any, else as text."""
    name, equals, value = given.partition("=")
    if not equals:
        raise ValueError(f"--parameter {given} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError as error:
        if value.startswith(("[", "{", '"')):
            raise ValueError(f"--parameter {given} begins as JSON and is none: {error}") from None
        return name, value


def _tell(body: Any, output: str) -> None:
    if output == "json":
        print(_json(body, indent=2))
        return
    try:
        rows = texts(body)
    except ValueError as error:
        raise EndpointError(200, "", f"{error}; --output json prints it as it is") from None
    for number, row in enumerate(rows):
        for i, text in enumerate(row):
            print(text if output == "text" else f"{number:>3} {i:>2}  {' '.join(text.split())}")


def _json(value: Any, indent: int | None = None) -> str:
    """With escapes in it where standard output has not every character."""
    return json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() not in ("utf-8", "utf8"), indent=indent)


def _tell_stream(events: Iterable[dict[str, Any]], output: str) -> None:
    """As JSON every event; as text the first sequence as it comes, and others, which come between, after it."""
    if output == "json":
        for event in events:
            print(_json(event), flush=True)
        return
    begun = False
    others: dict[tuple[int, int], str] = {}
    try:
        for place, text in (piece for event in events for piece in _pieces(event)):
            if place == (0, 0):
                print(text, end="", flush=True)
                begun = True
            else:
                others[place] = others.get(place, "") + text
    finally:  # an error is told on a line of its own
        if begun:
            print()
        for _, text in sorted(others.items()):
            print(text)


def _pieces(event: dict[str, Any]) -> Iterator[tuple[tuple[int, int], str]]:
    """New text with the row and the sequence it belongs to, in either form of stream."""
    for choice in event.get("choices") or []:
        if text := (choice.get("delta") or {}).get("content"):
            yield (0, choice.get("index", 0)), text
    for name, text in event.items():
        if name.isdecimal():
            yield (event.get("row", 0), int(name)), text
