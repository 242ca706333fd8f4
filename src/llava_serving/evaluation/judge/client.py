"""A text model that judges: any server of OpenAI's chat completions."""

import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...client.credentials import entra_token
from ...client.endpoint import Endpoint
from ...client.endpoint_error import EndpointError
from ...errors import StartupError

logger = logging.getLogger(__name__)
Messages = list[dict[str, str]]
AZURE_OPENAI_SCOPE = "https://cognitiveservices.azure.com/.default"
# The client itself sends a refused or never begun request again: 429, 502, 503, 504. A judge may also fail in the
# middle of its reply or answer 500; asking again costs tokens, but nothing else.
ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.5
RETRYABLE_STATUSES = (None, 200, 408, 409, 500, 502, 503, 504, 529)
UNKNOWN_PARAMETER_STATUSES = (400, 422)
# Models that reason count their hidden tokens too.
REASONING_TOKENS = 8192


@dataclass(frozen=True)
class Reply:
    """What the judge said. `model` is the version that the server names. `parameters` are those that were sent."""

    text: str
    model: str
    finish_reason: str
    usage: dict[str, int]
    parameters: dict[str, Any]


@dataclass
class JudgeClient:
    """Asks `model` at the base `url` of an API, such as https://api.openai.com/v1.

    `parameters` are sent with every question. One that the judge refuses is left out from then on: models that reason
    take no temperature, and `max_completion_tokens` in place of `max_tokens`. Raises StartupError for a wrong URL.
    """

    url: str
    model: str
    token: str | Callable[[], str] | None = field(repr=False)
    parameters: Mapping[str, Any]
    timeout: float = 180.0
    _endpoint: Endpoint = field(init=False, repr=False)
    _accepted: dict[str, Any] = field(init=False, repr=False)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _stopped: threading.Event = field(init=False, repr=False, default_factory=threading.Event)

    def __post_init__(self) -> None:
        base = self.url.rstrip("/").removesuffix("/chat/completions")
        try:
            self._endpoint = Endpoint(
                f"{base}/chat/completions", self.token, timeout=self.timeout, retries=8, retry_seconds=600
            )
        except ValueError as error:
            raise StartupError(f"--judge-url: {error}") from None
        self._accepted = dict(self.parameters)

    def ask(self, messages: Messages) -> Reply:
        """Returns the reply. Raises EndpointError after the last attempt, and at once if no attempt can succeed."""
        attempt = 0
        while True:
            sent = dict(self._accepted)
            try:
                return self._ask_once(messages, sent)
            except EndpointError as error:
                if self._drop_refused_parameter(error, sent):
                    continue
                attempt += 1
                if attempt == ATTEMPTS or error.status not in RETRYABLE_STATUSES or self._stopped.is_set():
                    raise
                logger.warning("%s; attempt %d of %d", error, attempt + 1, ATTEMPTS)
            self._stopped.wait(FIRST_PAUSE_SECONDS * 2**attempt)

    def stop(self) -> None:
        """Makes calls in other threads end soon."""
        self._stopped.set()
        self._endpoint.abort()

    def _ask_once(self, messages: Messages, parameters: dict[str, Any]) -> Reply:
        body = self._endpoint.score({"model": self.model, "messages": messages, **parameters}).body
        try:
            choice = body["choices"][0]
            text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
            usage = body.get("usage") or {}
            counts = {name: int(usage[name]) for name in ("prompt_tokens", "completion_tokens") if usage.get(name)}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise EndpointError(200, "", "the judge's answer is no chat completion") from None
        if not isinstance(text, str) or not text.strip():
            raise EndpointError(200, "", f"the judge's answer has no text (finish reason {finish_reason})")
        return Reply(text, str(body.get("model") or self.model), str(finish_reason), counts, parameters)

    def _drop_refused_parameter(self, error: EndpointError, sent: Mapping[str, Any]) -> bool:
        """Returns whether the judge refuses a parameter that was sent, and leaves it out from now on."""
        if error.status not in UNKNOWN_PARAMETER_STATUSES:
            return False
        named = next((name for name in sent if re.search(rf"\b{name}\b", error.message)), None)
        if named is None:
            return False
        with self._lock:
            if self._accepted.pop(named, None) is not None and named == "max_tokens":
                self._accepted["max_completion_tokens"] = max(REASONING_TOKENS, int(sent[named]))
        return True


def judge_token(key_variable: str | None, uses_entra: bool) -> str | Callable[[], str] | None:
    """Returns the judge's key from the environment, a function that gets Entra tokens, or None.

    Raises StartupError if the variable is named and empty.
    """
    if uses_entra:
        return partial(entra_token, AZURE_OPENAI_SCOPE)
    if key_variable is None:
        return None
    key = os.environ.get(key_variable, "").strip()
    if not key:
        raise StartupError(f"--judge-key-env: the environment variable {key_variable} is empty")
    return key
