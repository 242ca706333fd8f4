"""One request of a load test, and what its caller saw."""

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from ..client.server_sent_events import events

TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True)
class Target:
    """Where requests go, and how the answer comes: `score` is this service's own form, `openai` chat completions."""

    url: str
    api: Literal["score", "openai"]
    stream: bool
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass
class Outcome:
    """Times in seconds from sending. `error` is a status, or what happened instead of one; `why` in words."""

    error: str | None = None
    why: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    ttft: float | None = None
    e2e: float | None = None
    gaps: list[float] = field(default_factory=list)

    @property
    def tpot(self) -> float | None:
        if self.ttft is None or self.e2e is None or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)


def send(target: Target, body: bytes) -> Outcome:
    """Sends and waits for the end. Never raises: what fails is the outcome."""
    parts = urlsplit(target.url)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.netloc, timeout=TIMEOUT_SECONDS)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    outcome = Outcome()
    started = time.monotonic()
    try:
        connection.request("POST", path or "/", body, {"Content-Type": "application/json", **target.headers})
        response = connection.getresponse()
        if response.status != 200:
            return Outcome(error=str(response.status), why=response.read(2000).decode("utf-8", "replace"))
        if target.stream:
            _read_stream(response, outcome, started)
        else:
            _read_whole(response, target, outcome)
        outcome.e2e = time.monotonic() - started
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        outcome.error, outcome.why = type(error).__name__, str(error)
    finally:
        connection.close()
    return outcome


def _read_whole(response: http.client.HTTPResponse, target: Target, outcome: Outcome) -> None:
    body = json.loads(response.read())
    if target.api == "openai":
        _take_usage(outcome, body["usage"])
        return
    outcome.output_tokens = int(response.headers["x-llava-completion-tokens"])
    outcome.prompt_tokens = int(response.headers["x-llava-prompt-tokens"])
    outcome.cached_tokens = int(response.headers["x-llava-cached-tokens"])


def _read_stream(response: http.client.HTTPResponse, outcome: Outcome, started: float) -> None:
    last = None
    for event in events(response):
        now = time.monotonic()
        if "error" in event:
            error = event["error"]
            outcome.error = f"error event: {error.get('code') if isinstance(error, dict) else error}"
            outcome.why = json.dumps(error)
        elif _has_text(event):
            if last is None:
                outcome.ttft = now - started
            else:
                outcome.gaps.append(now - last)
            last = now
        if usage := event.get("usage"):
            _take_usage(outcome, usage)


def _has_text(event: dict[str, Any]) -> bool:
    if choices := event.get("choices"):
        return any((choice.get("delta") or {}).get("content") for choice in choices)
    return any(isinstance(value, str) and key.isdecimal() for key, value in event.items())


def _take_usage(outcome: Outcome, usage: dict[str, Any]) -> None:
    outcome.output_tokens += usage["completion_tokens"]
    outcome.prompt_tokens += usage["prompt_tokens"]
    outcome.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
