"""OpenAI's answers: chat completions and legacy text completions, whole and in the chunks of a stream."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..engine.completion import Completion, TokenLogprob, Usage
from ..engine.request_handle import TextDelta
from .answer_text import AnswerText
from .score_request import ScoreRequest


def usage(completions: Sequence[Completion]) -> dict[str, Any]:
    """Returns the token counts in OpenAI's form."""
    total = Usage.of(completions)
    return {
        "prompt_tokens": total.prompt_tokens,
        "completion_tokens": total.completion_tokens,
        "total_tokens": total.prompt_tokens + total.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": total.cached_tokens},
    }


def chat_completion_body(request: ScoreRequest, completions: Sequence[Completion], texts: list[str]) -> dict[str, Any]:
    """Returns OpenAI's chat.completion. `texts` are the answers of the completions."""
    choices = [
        {
            "index": completion.index,
            "message": {"role": "assistant", "content": text},
            "logprobs": _chat_logprobs(request, completion.logprobs),
            "finish_reason": completion.finish_reason,
        }
        for text, completion in zip(texts, completions, strict=True)
    ]
    return _head(request, "chat.completion", "chatcmpl") | {"choices": choices, "usage": usage(completions)}


def completion_body(request: ScoreRequest, completions: Sequence[Completion], texts: list[str]) -> dict[str, Any]:
    """Returns OpenAI's legacy text_completion. `texts` are the answers of the completions."""
    choices = [
        {
            "text": text,
            "index": _choice_index(request, completion.prompt_index, completion.index),
            "logprobs": _legacy_logprobs(request, completion.logprobs, 0),
            "finish_reason": completion.finish_reason,
        }
        for text, completion in zip(texts, completions, strict=True)
    ]
    return _head(request, "text_completion", "cmpl") | {"choices": choices, "usage": usage(completions)}


class _ChunkFormat:
    """The parts that the chunks of both streamed forms share."""

    def __init__(
        self, request: ScoreRequest, texts: dict[tuple[int, int], AnswerText], kind: str, id_prefix: str
    ) -> None:
        self._request = request
        self._texts = texts
        self._head = _head(request, kind, id_prefix)
        self._completions: list[Completion] = []

    def finish(self) -> Iterator[dict[str, Any]]:
        if self._request.include_usage:
            yield self._head | {"choices": [], "usage": usage(self._completions)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._head | {"choices": [choice]} | ({"usage": None} if self._request.include_usage else {})


class ChatCompletionFormat(_ChunkFormat):
    """The chunks of a streamed chat completion."""

    def __init__(self, request: ScoreRequest, texts: dict[tuple[int, int], AnswerText]) -> None:
        super().__init__(request, texts, "chat.completion.chunk", "chatcmpl")
        self._begun: set[int] = set()

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]:
        text = self._texts[delta.prompt_index, delta.index].push(delta.text)
        logprobs = _chat_logprobs(self._request, delta.logprobs)
        if text or delta.logprobs:
            yield from self._role(delta.index)
            yield self._delta_chunk(delta.index, {"content": text}, None, logprobs)

    def end(self, completion: Completion) -> Iterator[dict[str, Any]]:
        self._completions.append(completion)
        yield from self._role(completion.index)
        yield self._delta_chunk(completion.index, {}, completion.finish_reason)

    def _role(self, index: int) -> Iterator[dict[str, Any]]:
        """Yields the chunk with the role before the first other chunk of a sequence."""
        if index not in self._begun:
            self._begun.add(index)
            yield self._delta_chunk(index, {"role": "assistant", "content": ""}, None)

    def _delta_chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})


class CompletionFormat(_ChunkFormat):
    """The chunks of a streamed text completion."""

    def __init__(self, request: ScoreRequest, texts: dict[tuple[int, int], AnswerText]) -> None:
        super().__init__(request, texts, "text_completion", "cmpl")
        self._lengths = dict.fromkeys(texts, 0)  # of the text of each sequence so far

    def delta(self, delta: TextDelta) -> Iterator[dict[str, Any]]:
        key = delta.prompt_index, delta.index
        text = self._texts[key].push(delta.text)
        if text or delta.logprobs:
            logprobs = _legacy_logprobs(self._request, delta.logprobs, self._lengths[key])
            self._lengths[key] += len(text)
            yield self._text_chunk(key, text, None, logprobs)

    def end(self, completion: Completion) -> Iterator[dict[str, Any]]:
        self._completions.append(completion)
        key = completion.prompt_index, completion.index
        yield self._text_chunk(key, self._texts[key].flush(), completion.finish_reason)

    def _text_chunk(
        self, key: tuple[int, int], text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        index = _choice_index(self._request, *key)
        return self._chunk({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason})


def _head(request: ScoreRequest, kind: str, id_prefix: str) -> dict[str, Any]:
    """Returns the first fields of an answer, and of every chunk of its stream."""
    return {
        "id": f"{id_prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
    }


def _choice_index(request: ScoreRequest, prompt_index: int, index: int) -> int:
    return prompt_index * request.parameters.n + index


def _chat_logprobs(request: ScoreRequest, logprobs: Iterable[TokenLogprob]) -> dict[str, Any] | None:
    if request.logprobs is None:
        return None
    return {
        "content": [
            _token(token) | {"top_logprobs": [_token(alternative) for alternative in token.alternatives]}
            for token in logprobs
        ]
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": _text(token), "bytes": list(token.token), "logprob": token.logprob}


def _legacy_logprobs(request: ScoreRequest, logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any] | None:
    """Returns the four parallel lists of the legacy form. `offset` is the length of the text before these tokens."""
    if request.logprobs is None:
        return None
    tokens = [_text(token) for token in logprobs]
    offsets = [offset + sum(map(len, tokens[:i])) for i in range(len(tokens))]
    top = [{_text(alternative): alternative.logprob for alternative in token.alternatives} for token in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [token.logprob for token in logprobs],
        "top_logprobs": top,
        "text_offset": offsets,
    }


def _text(token: TokenLogprob) -> str:
    return token.token.decode("utf-8", "replace")
