"""The request log: one JSON line and the metrics for each request, once it is over. It holds no prompt and no image."""

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..api.score_request import ScoreRequest
from ..engine.completion import Completion, Usage
from ..errors import RequestError
from .metrics import Metrics

logger = logging.getLogger(__name__)
REQUEST_ID_HEADERS = ("x-ms-client-request-id", "x-request-id")
MAX_REQUEST_ID = 40  # the limit of Azure's front end


@dataclass
class RequestRecord:
    """The facts about a request that are known so far."""

    request_id: str
    began: float = field(default_factory=time.monotonic)
    form: str | None = None
    stream: bool = False
    num_prompts: int = 0
    num_sequences: int = 0
    num_images: int = 0

    @classmethod
    def begin(cls, headers: Mapping[str, str]) -> "RequestRecord":
        """Starts the record of a request with these headers, whose names are in lower case."""
        request_id = next((headers[name] for name in REQUEST_ID_HEADERS if name in headers), "")
        return cls(re.sub(r"[^A-Za-z0-9_-]", "", request_id)[:MAX_REQUEST_ID])

    def describe(self, request: ScoreRequest) -> None:
        """Adds the facts that the body holds."""
        self.form, self.stream = request.form, request.stream
        self.num_prompts = len(request.prompts)
        self.num_sequences = request.num_sequences
        self.num_images = sum(len(prompt.images) for prompt in request.prompts)


class RequestLog:
    """Writes each request once, when it is over."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def write(self, record: RequestRecord, completions: Sequence[Completion], error: RequestError | None) -> None:
        """Logs the finished `completions`, and the `error` that the client received, if there is one."""
        for completion in completions:
            self._metrics.count_completion(completion)
        if error is not None:
            self._metrics.count_error(error.status, error.code)
        logger.info(json.dumps(_line(record, completions, error)))


def _line(record: RequestRecord, completions: Sequence[Completion], error: RequestError | None) -> dict[str, Any]:
    usage = Usage.of(completions)
    return {
        "request_id": record.request_id,
        "status": 200 if error is None else error.status,
        "code": None if error is None else error.code,
        "form": record.form,
        "stream": record.stream,
        "rows": record.num_prompts,
        "sequences": record.num_sequences,
        "images": record.num_images,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "finish_reasons": [completion.finish_reason for completion in completions],
        "queue_ms": _least_milliseconds(completion.queue_seconds for completion in completions),
        "ttft_ms": _least_milliseconds(c.ttft_seconds for c in completions if c.ttft_seconds is not None),
        "total_ms": round((time.monotonic() - record.began) * 1e3, 1),
    }


def _least_milliseconds(seconds: Iterable[float]) -> float | None:
    """Returns the time of the sequence that waited least, which is the first that the client sees."""
    return min((round(value * 1e3, 1) for value in seconds), default=None)
