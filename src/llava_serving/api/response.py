"""The one place where whole answers and errors become bodies and headers; streamed ones are stream.py's."""

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
    """A body that comes piece by piece. The server calls `close` at its end, and when the caller has gone before."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class HttpResponse:
    """An HTTP answer. Header values hold no commas: Azure's server would split them."""

    status: int
    headers: dict[str, str]
    body: bytes | BodyStream


def error_response(error: RequestError) -> HttpResponse:
    """`{"error": {"code", "message", "param"}}` with the error's status."""
    headers = dict(JSON_TYPE)
    if error.status == 405:
        headers["Allow"] = "POST"
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return HttpResponse(error.status, headers, to_json(error_body(error)))


def error_body(error: RequestError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message, "param": error.param}}


def refusal(completions: Iterable[Completion]) -> RequestError | None:
    """What is told instead of completions that are none."""
    completions = list(completions)
    if any(completion.finish_reason == "cancelled" for completion in completions):
        return ClientClosed("client_closed", "the caller left before the end")
    if completions and all(c.finish_reason == "deadline" and not c.num_tokens for c in completions):
        return DeadlineExceeded(
            "deadline_exceeded", "nothing was generated in the time there was: send less at a time, or allow it more"
        )
    return None


def answer_response(request: ScoreRequest, rows: list[list[Completion]]) -> HttpResponse:
    """The body in the request's own form; usage, finish reasons and times in headers."""
    return HttpResponse(200, JSON_TYPE | _headers(rows), to_json(answer_body(request, rows)))


def answer_body(request: ScoreRequest, rows: list[list[Completion]]) -> Any:
    """The answer in the request's own form, a JSON value."""
    texts = [
        [_whole(AnswerText(prompt, echo), completion.text) for completion in row]
        for prompt, echo, row in zip(request.prompts, request.echo, rows, strict=True)
    ]
    if request.form == "prompts":
        return [{str(i): text for i, text in enumerate(row)} for row in texts]
    if request.form == "list":
        return [row[0] for row in texts]
    if request.form == "table":
        return [{"response": row[0]} for row in texts]
    if request.form == "chat":
        return {"output": texts[0][0]}
    return _chat_completion(request, rows[0], texts[0])


class AnswerText:
    """A completion's text as its caller gets it, in as many pieces as it comes.

    An answer to a question is stripped, as the authors did; a raw prompt goes on where it ended. With `echo` the
    prompt comes first and nothing is stripped.
    """

    def __init__(self, prompt: Prompt, echo: bool) -> None:
        self._before = prompt.text if echo else ""
        self._strips = prompt.is_question and not echo
        # SentencePiece drops the space it puts before the very first word.
        self._drops_space = not prompt.is_question and not prompt.text
        self._begun = False
        self._held = ""

    def push(self, piece: str) -> str:
        """What can be told with `piece`: white space waits for what follows it."""
        if self._strips:
            piece = self._held + piece if self._begun else piece.lstrip()
            kept = piece.rstrip()
            self._held = piece[len(kept) :]
            piece = kept
            self._begun = self._begun or bool(piece)
        elif self._drops_space and piece:
            piece = piece.removeprefix(" ")
            self._drops_space = False
        before, self._before = self._before, ""
        return before + piece

    def flush(self) -> str:
        """What is left at the end: the prompt, if no piece came."""
        before, self._before = self._before, ""
        return before


def _whole(text: AnswerText, completion: str) -> str:
    return text.push(completion) + text.flush()


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """Of the sequences of one prompt, as OpenAI counts."""
    prompt_tokens = completions[0].prompt_tokens
    completion_tokens = sum(completion.num_tokens for completion in completions)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completions[0].cached_tokens},
    }


def completion_head(request: ScoreRequest, kind: str) -> dict[str, Any]:
    """What OpenAI's answer and every chunk of its stream begin with."""
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


def logprobs_body(request: ScoreRequest, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
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


def _headers(rows: list[list[Completion]]) -> dict[str, str]:
    completions = [completion for row in rows for completion in row]
    ttfts = [completion.ttft_seconds for completion in completions if completion.ttft_seconds is not None]
    headers = {
        "x-llava-prompt-tokens": str(sum(row[0].prompt_tokens for row in rows)),
        "x-llava-cached-tokens": str(sum(row[0].cached_tokens for row in rows)),
        "x-llava-completion-tokens": str(sum(completion.num_tokens for completion in completions)),
        "x-llava-finish-reason": " ".join(completion.finish_reason for completion in completions),
        "x-llava-queue-ms": _milliseconds(min(completion.queue_seconds for completion in completions)),
        "x-llava-total-ms": _milliseconds(max(completion.total_seconds for completion in completions)),
    }
    return headers | ({"x-llava-ttft-ms": _milliseconds(min(ttfts))} if ttfts else {})


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _chat_completion(request: ScoreRequest, completions: list[Completion], texts: list[str]) -> dict[str, Any]:
    return completion_head(request, "chat.completion") | {
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": text},
                "logprobs": logprobs_body(request, completion.logprobs),
                "finish_reason": completion.finish_reason,
            }
            for i, (text, completion) in enumerate(zip(texts, completions, strict=True))
        ],
        "usage": usage(completions),
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token.decode("utf-8", "replace"), "bytes": list(token.token), "logprob": token.logprob}
