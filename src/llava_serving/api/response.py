"""Whole answers and errors as HTTP responses. Streamed answers are in stream.py."""

import json
from collections.abc import Sequence
from typing import Any, assert_never

from ..engine.completion import Completion, Usage
from ..errors import ClientClosed, DeadlineExceeded, MethodNotAllowed, RequestError
from .answer_text import AnswerText
from .http import HttpResponse
from .openai_response import chat_completion_body, completion_body
from .score_request import ScoreRequest

JSON_TYPE = {"Content-Type": "application/json"}
ERROR_TYPES = {429: "rate_limit_error", 504: "timeout"}  # by status


def json_response(body: Any) -> HttpResponse:
    return HttpResponse(200, JSON_TYPE, to_json(body))


def error_response(error: RequestError) -> HttpResponse:
    """Returns the error object with the error's status."""
    headers = dict(JSON_TYPE)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allowed
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return HttpResponse(error.status, headers, to_json(error_body(error)))


def error_body(error: RequestError) -> dict[str, Any]:
    """Returns the error object. Its `type` is OpenAI's class of error, which OpenAI's clients show."""
    kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"code": error.code, "message": error.message, "param": error.param, "type": kind}}


def completion_error(completions: Sequence[Completion]) -> RequestError | None:
    """Returns the error to report if the completions are no answer, else None."""
    if any(completion.finish_reason == "cancelled" for completion in completions):
        return ClientClosed("client_closed", "the client disconnected before the end")
    if completions and all(c.finish_reason == "deadline" and not c.num_tokens for c in completions):
        return DeadlineExceeded(
            "deadline_exceeded", "no token was generated before the deadline: send less at a time, or allow more time"
        )
    return None


def answer_response(request: ScoreRequest, completions: Sequence[Completion]) -> HttpResponse:
    """Returns the answer in the request's own form, with usage, finish reasons and times in headers.

    `completions` are ordered by prompt and index.
    """
    return HttpResponse(200, JSON_TYPE | _headers(completions), to_json(answer_body(request, completions)))


def answer_body(request: ScoreRequest, completions: Sequence[Completion]) -> Any:
    """Returns the answer in the request's own form, as a JSON value."""
    if request.form == "chat_completion":
        return chat_completion_body(request, completions, [_answer_text(request, c) for c in completions])
    if request.form == "completion":
        return completion_body(request, completions, [_answer_text(request, c) for c in completions])
    texts: list[list[str]] = [[] for _ in request.prompts]
    for completion in completions:
        texts[completion.prompt_index].append(_answer_text(request, completion))
    if request.form == "prompts":
        return [{str(index): text for index, text in enumerate(of_prompt)} for of_prompt in texts]
    if request.form == "list":
        return [of_prompt[0] for of_prompt in texts]
    if request.form == "table":
        return [{"response": of_prompt[0]} for of_prompt in texts]
    if request.form == "chat":
        return {"output": texts[0][0]}
    assert_never(request.form)


def to_json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _answer_text(request: ScoreRequest, completion: Completion) -> str:
    text = AnswerText(request.prompts[completion.prompt_index], request.echo[completion.prompt_index])
    return text.push(completion.text) + text.flush()


def _headers(completions: Sequence[Completion]) -> dict[str, str]:
    usage = Usage.of(completions)
    ttfts = [completion.ttft_seconds for completion in completions if completion.ttft_seconds is not None]
    headers = {
        "x-llava-prompt-tokens": str(usage.prompt_tokens),
        "x-llava-cached-tokens": str(usage.cached_tokens),
        "x-llava-completion-tokens": str(usage.completion_tokens),
        "x-llava-finish-reason": " ".join(completion.finish_reason for completion in completions),
        "x-llava-queue-ms": _milliseconds(min(completion.queue_seconds for completion in completions)),
        "x-llava-total-ms": _milliseconds(max(completion.total_seconds for completion in completions)),
    }
    return headers | ({"x-llava-ttft-ms": _milliseconds(min(ttfts))} if ttfts else {})


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
