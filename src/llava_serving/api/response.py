"""Whole answers and errors as HTTP responses. Streamed answers are in stream.py."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..engine.completion import Completion, TokenLogprob
from ..errors import ClientClosed, DeadlineExceeded, RequestError
from ..inputs.prompt import Prompt
from .request import ScoreRequest

JSON_TYPE = {"Content-Type": "application/json"}


class BodyStream(Protocol):
    """A body in pieces. The server calls `close` after the last piece, and earlier if the client disconnects."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP response. Its header values hold no commas, because Azure's server splits a value at each comma."""

    status: int
    headers: dict[str, str]
    body: bytes | BodyStream


def error_response(error: RequestError) -> HttpResponse:
    """Returns `{"error": {"code", "message", "param"}}` with the error's status."""
    headers = dict(JSON_TYPE)
    if error.status == 405:
        headers["Allow"] = "POST"
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return HttpResponse(error.status, headers, to_json(error_body(error)))


def error_body(error: RequestError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "param": error.param}}


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
    return _chat_completion(request, completions, texts[0])


class AnswerText:
    """A completion's text as the client receives it, in any number of pieces.

    The answer to a prompt in a template is stripped, as the authors did. A raw prompt is continued where it ends. With
    `echo` the prompt comes first and nothing is stripped.
    """

    def __init__(self, prompt: Prompt, echo: bool) -> None:
        self._prefix = prompt.text if echo else ""
        self._strips = prompt.in_template and not echo
        # SentencePiece drops the space that it puts before the first word of a text.
        self._drops_space = not prompt.in_template and not prompt.text
        self._has_begun = False
        self._held_space = ""

    def push(self, piece: str) -> str:
        """Returns the text to send after `piece`. White space at the end waits for the text behind it."""
        if self._strips:
            piece = self._held_space + piece if self._has_begun else piece.lstrip()
            stripped = piece.rstrip()
            self._held_space = piece[len(stripped) :]
            piece = stripped
            self._has_begun = self._has_begun or bool(piece)
        elif self._drops_space and piece:
            piece = piece.removeprefix(" ")
            self._drops_space = False
        return self._take_prefix() + piece

    def flush(self) -> str:
        """Returns the text that is left at the end: the prompt, if there was no piece."""
        return self._take_prefix()

    def _take_prefix(self) -> str:
        prefix, self._prefix = self._prefix, ""
        return prefix


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """Returns the token counts of one prompt's sequences, counted as OpenAI counts them."""
    prompt_tokens = completions[0].prompt_tokens
    completion_tokens = sum(completion.num_tokens for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completions[0].cached_tokens},
    }


def completion_head(request: ScoreRequest, kind: str) -> dict[str, Any]:
    """Returns the first fields of OpenAI's answer and of every chunk of its stream."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


def logprobs_body(request: ScoreRequest, logprobs: Iterable[TokenLogprob]) -> dict[str, Any] | None:
    """Returns OpenAI's `logprobs` object, or None if the request does not ask for it."""
    if request.logprobs is None:
        return None
    return {
        "content": [
            _token(token) | {"top_logprobs": [_token(alternative) for alternative in token.alternatives]}
            for token in logprobs
        ]
    }


def to_json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _answer_text(request: ScoreRequest, completion: Completion) -> str:
    text = AnswerText(request.prompts[completion.prompt_index], request.echo[completion.prompt_index])
    return text.push(completion.text) + text.flush()


def _headers(completions: Sequence[Completion]) -> dict[str, str]:
    first_of_prompts = [completion for completion in completions if completion.index == 0]
    ttfts = [completion.ttft_seconds for completion in completions if completion.ttft_seconds is not None]
    headers = {
        "x-llava-prompt-tokens": str(sum(completion.prompt_tokens for completion in first_of_prompts)),
        "x-llava-cached-tokens": str(sum(completion.cached_tokens for completion in first_of_prompts)),
        "x-llava-completion-tokens": str(sum(completion.num_tokens for completion in completions)),
        "x-llava-finish-reason": " ".join(completion.finish_reason for completion in completions),
        "x-llava-queue-ms": _milliseconds(min(completion.queue_seconds for completion in completions)),
        "x-llava-total-ms": _milliseconds(max(completion.total_seconds for completion in completions)),
    }
    return headers | ({"x-llava-ttft-ms": _milliseconds(min(ttfts))} if ttfts else {})


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _chat_completion(request: ScoreRequest, completions: Sequence[Completion], texts: list[str]) -> dict[str, Any]:
    return completion_head(request, "chat.completion") | {
        "choices": [
            {
                "index": completion.index,
                "message": {"role": "assistant", "content": text},
                "logprobs": logprobs_body(request, completion.logprobs),
                "finish_reason": completion.finish_reason,
            }
            for text, completion in zip(texts, completions, strict=True)
        ],
        "usage": usage(completions),
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token.decode("utf-8", "replace"), "bytes": list(token.token), "logprob": token.logprob}
