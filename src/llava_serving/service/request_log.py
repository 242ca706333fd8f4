"""What is told of each request once it is over: one JSON line in the log, and the metrics. No prompts, no images."""

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..api.request import ScoreRequest
from ..engine.completion import Completion
from ..errors import RequestError
from .metrics import Metrics

logger = logging.getLogger(__name__)
REQUEST_ID_HEADERS = ("x-ms-client-request-id", "x-request-id")
MAX_REQUEST_ID = 40  # of Azure's front end


@dataclass
class RequestRecord:
    """A request as far as it is known."""

    request_id: str
    begun: float = field(default_factory=time.monotonic)
    form: str | None = None
    stream: bool = False
    rows: int = 0
    sequences: int = 0
    images: int = 0

    @classmethod
    def begin(cls, headers: Mapping[str, str]) -> "RequestRecord":
        sent = next((headers[name] for name in REQUEST_ID_HEADERS if name in headers), "")
        return cls(re.sub(r"[^A-Za-z0-9_-]", "", sent)[:MAX_REQUEST_ID])

    def asked(self, request: ScoreRequest, stream: bool) -> None:
        """The body could be read."""
        self.form, self.stream = request.form, stream
        self.rows = len(request.prompts)
        self.sequences = self.rows * request.parameters.n
        self.images = sum(len(prompt.images) for prompt in request.prompts)


class RequestLog:
    """Where requests are written down when they are over, each once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def write(
        self, record: RequestRecord, completions: Mapping[tuple[int, int], Completion], error: RequestError | None
    ) -> None:
        """`completions` by (row, index) are what was finished, `error` is what the caller was told, if it was one."""
        for completion in completions.values():
            self._metrics.finished(completion)
        if error is not None:
            self._metrics.refused(error.status, error.code)
        logger.info(json.dumps(_line(record, completions, error)))


def _line(
    record: RequestRecord, completions: Mapping[tuple[int, int], Completion], error: RequestError | None
) -> dict[str, Any]:
    first_of_rows = [completion for (_, index), completion in completions.items() if index == 0]
    every = completions.values()
    return {
        "request_id": record.request_id,
        "status": 200 if error is None else error.status,
        "code": None if error is None else error.code,
        "form": record.form,
        "stream": record.stream,
        "rows": record.rows,
        "sequences": record.sequences,
        "images": record.images,
        "prompt_tokens": sum(completion.prompt_tokens for completion in first_of_rows),
        "cached_tokens": sum(completion.cached_tokens for completion in first_of_rows),
        "completion_tokens": sum(completion.num_tokens for completion in every),
        "finish_reasons": [completion.finish_reason for completion in every],
        "queue_ms": _milliseconds(completion.queue_seconds for completion in every),
        "ttft_ms": _milliseconds(c.ttft_seconds for c in every if c.ttft_seconds is not None),
        "total_ms": round((time.monotonic() - record.begun) * 1e3, 1),
    }


def _milliseconds(seconds: Iterable[float]) -> float | None:
    """Of the sequence that waited least, which is what its caller saw first."""
    return min((round(value * 1e3, 1) for value in seconds), default=None)
