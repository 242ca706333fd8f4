"""`llava-serving score`: sends prompts to an endpoint of Azure or to a server on this machine, and prints the answer.

  llava-serving score --url http://127.0.0.1:5001/score --image cat.png "What is this?"
  llava-serving score --url URL --entra --stream "the meaning of life is"
  llava-serving score --url URL --file request.json --output json

The key is read from AZUREML_ENDPOINT_KEY, so that no process list shows it; --entra uses a Microsoft Entra token.
A request that met a busy endpoint (429, 503), a gateway's error (502, 504), or a connection that ended before the
response began, is sent again, after the time that the endpoint names and a random one.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..client.answer_texts import answer_texts
from ..client.credentials import KEY_VARIABLE, entra_token
from ..client.endpoint import Endpoint
from ..client.endpoint_error import EndpointError
from ..client.request_body import ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*")
    parser.add_argument(
        "--url", required=True, help="the scoring URI: https://NAME.REGION.inference.ml.azure.com/score"
    )
    parser.add_argument("--entra", action="store_true", help="authenticate with a Microsoft Entra token")
    parser.add_argument("--deployment", help="the deployment that answers, whatever the traffic rules say")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="FILE",
        help="an image of the prompt; several prompts have one each, or share one",
    )  # fmt: skip
    parser.add_argument("--file", metavar="FILE", help="a file with the JSON body of the request; - is standard input")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="max_new_tokens=64, stop='[\"#\"]', ..."
    )
    parser.add_argument("--stream", action="store_true", help="print the text while it is generated")
    parser.add_argument(
        "--output", choices=("text", "table", "json"), default="text",
        help="table prints the index of each prompt and sequence; json prints the body, or the events of a stream",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=180.0, metavar="SECONDS",
        help="longest time in which the endpoint sends nothing, for each attempt; default: 180",
    )  # fmt: skip
    parser.add_argument("--retries", type=int, default=4, help="further attempts after transient failures, default: 4")
    parser.add_argument(
        "--retry-seconds", type=float, default=120.0, metavar="SECONDS",
        help="longest time from the first attempt to the start of the last one; default: 120",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Returns the exit status: 0 for an answer, 1 without an answer, 2 if the request cannot be made."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a character that the terminal lacks raises no error
    token = entra_token if arguments.entra else os.environ.get(KEY_VARIABLE) or None
    try:
        if arguments.stream and arguments.output == "table":
            raise ValueError("--output table does not go with --stream, which prints text or json")
        body = _body(arguments)
        endpoint = Endpoint(
            arguments.url,
            token,
            arguments.deployment,
            arguments.timeout,
            arguments.retries,
            arguments.retry_seconds,
        )
    except (OSError, ValueError) as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 2
    try:
        if arguments.stream:
            _print_stream(endpoint.stream(body), arguments.output)
        else:
            _print_answer(endpoint.score(body).body, arguments.output)
    except EndpointError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    return 0


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the request body. Raises ValueError for arguments that do not go together."""
    if bool(arguments.prompt) == (arguments.file is not None):
        raise ValueError("give either prompts or a body with --file")
    if arguments.file is None:
        parameters = dict(map(_parameter, arguments.parameter))
        for name in {"prompts", "images"} & parameters.keys():
            raise ValueError(f"{name} is not a parameter: give prompts as arguments, and images with --image")
        return ask(arguments.prompt, arguments.image, **parameters)
    if arguments.image or arguments.parameter:
        raise ValueError("--image and --parameter do not go with --file: write them into the body")
    return _read_body(arguments.file)


def _read_body(name: str) -> dict[str, Any]:
    """Reads a body from a file, or from standard input if `name` is "-". Raises ValueError and OSError."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
        body = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not one JSON value ({error}); llava-serving batch reads JSON lines") from None
    if not isinstance(body, dict):
        raise ValueError(f"{name} is not a JSON object")
    return body


def _parameter(text: str) -> tuple[str, Any]:
    """Splits NAME=VALUE, and reads the value as JSON if it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--parameter {text} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError as error:
        if value.startswith(("[", "{", '"')):
            raise ValueError(f"--parameter {text} begins like JSON but is not JSON: {error}") from None
        return name, value


def _print_answer(body: Any, output: str) -> None:
    if output == "json":
        print(_json(body, indent=2))
        return
    try:
        texts = answer_texts(body)
    except ValueError as error:
        raise EndpointError(200, "", f"{error}; --output json prints the body") from None
    for prompt_index, sequences in enumerate(texts):
        for index, text in enumerate(sequences):
            print(text if output == "text" else f"{prompt_index:>3} {index:>2}  {' '.join(text.split())}")


def _json(value: Any, indent: int | None = None) -> str:
    """Escapes non-ASCII characters unless standard output is UTF-8."""
    return json.dumps(value, ensure_ascii=sys.stdout.encoding.lower() not in ("utf-8", "utf8"), indent=indent)


def _print_stream(events: Iterable[dict[str, Any]], output: str) -> None:
    """Prints events as JSON lines, or else the text of the first sequence at once and of the others at the end."""
    if output == "json":
        for event in events:
            print(_json(event), flush=True)
        return
    has_printed = False
    others: dict[tuple[int, int], str] = {}
    try:
        for sequence, text in (delta for event in events for delta in _text_deltas(event)):
            if sequence == (0, 0):
                print(text, end="", flush=True)
                has_printed = True
            else:
                others[sequence] = others.get(sequence, "") + text
    finally:  # ends the line, so that an error message starts on a new one
        if has_printed:
            print()
        for _, text in sorted(others.items()):
            print(text)


def _text_deltas(event: dict[str, Any]) -> Iterator[tuple[tuple[int, int], str]]:
    """Yields ((prompt index, sequence index), new text) from an event of any form of stream."""
    for choice in event.get("choices") or []:
        if text := choice.get("text") or (choice.get("delta") or {}).get("content"):
            yield (0, choice.get("index", 0)), text
    for name, text in event.items():
        if name.isdecimal():
            yield (event.get("row", 0), int(name)), text
