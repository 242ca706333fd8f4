"""The figures of a streamed answer: time to the first token, tokens per second, and tokens of prompt and answer."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Figures:
    """Collects the figures while events arrive. Times are in seconds since the request was sent."""

    first_token: float | None = None
    last_token: float | None = None
    finish_reason: str = ""
    usage: dict[str, Any] = field(default_factory=dict)

    def add(self, event: dict[str, Any], seconds: float) -> str:
        """Takes the figures out of an event that arrived after `seconds`. Returns the event's new text."""
        text = _text(event)
        if text:
            self.first_token = seconds if self.first_token is None else self.first_token
            self.last_token = seconds
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices") or [event]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        return text

    @property
    def tokens_per_second(self) -> float | None:
        """Returns the rate after the first token, or None if it cannot be known."""
        tokens: int = self.usage.get("completion_tokens", 0)
        if tokens < 2 or self.first_token is None or self.last_token is None or self.last_token <= self.first_token:
            return None
        return (tokens - 1) / (self.last_token - self.first_token)

    def details(self) -> str:
        """Returns what the summary leaves out, in sentences."""
        sentences = {
            "stop": "The model ended the answer.",
            "length": "The answer reached the longest length, or the end of the model's context.",
        }
        last = "" if self.last_token is None else f" The last token came after {_duration(self.last_token)}."
        return sentences.get(self.finish_reason, f"Finish reason: {self.finish_reason or 'none'}.") + last

    def summary(self) -> str:
        """Returns the figures as one short line."""
        parts = [] if self.first_token is None else [f"first token {_duration(self.first_token)}"]
        if (rate := self.tokens_per_second) is not None:
            parts.append(f"{rate:.0f} tokens/s" if rate >= 10 else f"{rate:.1f} tokens/s")
        if self.usage:
            cached = (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            parts.append(f"prompt {_tokens(self.usage.get('prompt_tokens', 0))} ({cached} cached)")
            parts.append(f"answer {_tokens(self.usage.get('completion_tokens', 0))}")
        return " · ".join(parts)


def _text(event: dict[str, Any]) -> str:
    """Returns the text of the first sequence in an event of OpenAI's form or of the service's own."""
    choices = event.get("choices")
    if choices is None:
        return str(event.get("0", ""))
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in choices)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
