"""The one place where answers and errors become bodies and headers."""

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from .engine.sequence import Completion, Generation, TokenLogprob
from .errors import RequestError
from .forms import ScoreRequest
from .prompt import Prompt

JSON_TYPE = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """An HTTP answer. Header values hold no commas: Azure's server would split them."""

    status: int
    headers: dict[str, str]
    body: bytes


def error_reply(error: RequestError) -> Reply:
    """`{"error": {"code", "message", "param"}}` with the error's status."""
    body = {"error": {"code": error.code, "message": error.message, "param": error.param}}
    headers = JSON_TYPE | ({"Allow": "POST"} if error.status == 405 else {})
    return Reply(error.status, headers, _json(body))


def answer_reply(request: ScoreRequest, generations: list[Generation]) -> Reply:
    """The body in the request's own form; usage, finish reasons and times in headers."""
    texts = [
        [_text(prompt, completion, echo) for completion in generation.completions]
        for prompt, echo, generation in zip(request.prompts, request.echo, generations, strict=True)
    ]
    body: Any
    if request.form == "prompts":
        body = [{str(i): text for i, text in enumerate(row)} for row in texts]
    elif request.form == "list":
        body = [row[0] for row in texts]
    elif request.form == "table":
        body = [{"response": row[0]} for row in texts]
    elif request.form == "chat":
        body = {"output": texts[0][0]}
    else:
        body = _chat_completion(request, generations[0], texts[0])
    return Reply(200, JSON_TYPE | _headers(generations), _json(body))


def _text(prompt: Prompt, completion: Completion, echo: bool) -> str:
    """An answer to a question is stripped, as the authors did; a raw prompt goes on where it ended."""
    if not prompt.is_question:
        # SentencePiece drops the space it puts before the very first word.
        text = completion.text.removeprefix(" ") if not prompt.text else completion.text
        return prompt.text + text if echo else text
    return prompt.text + completion.text if echo else completion.text.strip()


def _headers(generations: list[Generation]) -> dict[str, str]:
    completions = [completion for generation in generations for completion in generation.completions]
    return {
        "x-llava-prompt-tokens": str(sum(generation.prompt_tokens for generation in generations)),
        "x-llava-completion-tokens": str(sum(completion.num_tokens for completion in completions)),
        "x-llava-finish-reason": " ".join(completion.finish_reason for completion in completions),
        "x-llava-queue-ms": _milliseconds(min(generation.queue_seconds for generation in generations)),
        "x-llava-ttft-ms": _milliseconds(min(generation.ttft_seconds for generation in generations)),
        "x-llava-total-ms": _milliseconds(max(generation.total_seconds for generation in generations)),
    }


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"


def _chat_completion(request: ScoreRequest, generation: Generation, texts: list[str]) -> dict[str, Any]:
    completion_tokens = sum(completion.num_tokens for completion in generation.completions)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": text},
                "logprobs": None
                if request.logprobs is None
                else {"content": [_logprob(t) for t in completion.logprobs]},
                "finish_reason": completion.finish_reason,
            }
            for i, (text, completion) in enumerate(zip(texts, generation.completions, strict=True))
        ],
        "usage": {
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": generation.prompt_tokens + completion_tokens,
        },
    }


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    return _token(token) | {"top_logprobs": [_token(alternative) for alternative in token.alternatives]}


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token.decode("utf-8", "replace"), "bytes": list(token.token), "logprob": token.logprob}


def _json(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()
