"""OpenAI's fields that this service does not implement: which values ask for nothing, and which are refused.

Clients send many of them by default, so a value that asks for nothing is accepted and has no effect.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import BadRequest

# Hints and bookkeeping: no value changes the answer.
IGNORED = (
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier", "service_tier", "store", "user", "verbosity",
)  # fmt: skip
# The values that ask for nothing; null is one for every field.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"], []),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "web_search_options": (),
}
# Fields of a message, as OpenAI's client sends its own answer back.
NEUTRAL_MESSAGE_VALUES: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": ("",),
    "tool_calls": ([],),
}


def drop_neutral(
    content: Mapping[str, Any], path: str = "", neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL_VALUES
) -> dict[str, Any]:
    """Returns the object at `path` without the fields that have no effect.

    Raises BadRequest for a value that would have one.
    """
    rest = {}
    if content.get("tool_choice") == "none":  # the tools are not to be used
        content = {name: value for name, value in content.items() if name != "tools"}
    for name, value in content.items():
        if name in neutral:
            _check_neutral(value, f"{path}.{name}" if path else name, neutral[name])
        elif name not in IGNORED:
            rest[name] = value
    return rest


def _check_neutral(value: Any, path: str, neutral: tuple[Any, ...]) -> None:
    if isinstance(value, dict):
        value = {name: member for name, member in value.items() if member is not None}
    is_bool = isinstance(value, bool)  # in Python, False equals 0
    if value is None or (value in neutral and not is_bool):
        return
    accepted = " or ".join(map(json.dumps, (None, *neutral)))
    raise BadRequest(
        "unsupported_parameter", f"this service does not support {path}: leave it out, or send {accepted}", path
    )
