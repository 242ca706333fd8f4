"""What the comparison knows of an engine: how to prepare it, start it and ask it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ADAPTERS = Path(__file__).resolve().parent / "adapters"


@dataclass(frozen=True)
class Engine:
    """An engine with one precision.

    `prepare` installs and converts what is missing, and raises PreparationError if it cannot. `command` gets a port of
    127.0.0.1. `health` and `path` are of the URL. `weight_bytes` returns the bytes of the language model's matrices,
    which every decode step reads; it is called after `prepare`. `source` is the checkout
    whose code runs, and `note` tells a reader what differs from the others.
    """

    label: str
    family: str
    command: Callable[[int], list[str]]
    weight_bytes: Callable[[], int]
    api: Literal["score", "openai"] = "openai"
    path: str = "/v1/chat/completions"
    health: str = "/"
    prepare: Callable[[], None] = lambda: None
    python: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    source: Path | None = None
    has_vision: bool = True
    note: str = ""


class PreparationError(Exception):
    """An engine cannot be installed, converted or started. The message says why."""


def adapter_command(python: Path, adapter: str, model: Path, template: Path, port: int, **options: str) -> list[str]:
    """Returns the command of one of ADAPTERS. `template` is the folder of the chat template."""
    command = [str(python), str(ADAPTERS / adapter), str(model), "--port", str(port), "--chat-template", str(template)]
    for name, value in options.items():
        command += ["--option", name, value]
    return command
