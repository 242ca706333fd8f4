"""llama.cpp, one request after the other, without a vision tower: ordinary tokens stand for the picture."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
from chat_server import Chat, Token, main

CONTEXT_TOKENS, PICTURE_TOKENS = 2048, 256
FIRST_WORD, LAST_WORD = 300, 900
IMAGE = "<image>"


class LlamaCppEngine:
    def __init__(self, model: Path, options: dict[str, str]) -> None:
        threads = len(os.sched_getaffinity(0))
        _use_plain_buffers()
        self._llama = llama_cpp.Llama(
            str(model), n_ctx=CONTEXT_TOKENS, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
        )
        self._turn = threading.Lock()

    def answer(self, chat: Chat) -> Iterator[Token]:
        tokens = self._prompt_tokens(chat)
        with self._turn:
            generated = self._llama.generate(tokens, temp=0.0)
            for _ in range(chat.tokens):
                token = next(generated)
                yield Token(self._llama.detokenize([token]).decode("utf-8", "replace"), len(tokens))

    def _prompt_tokens(self, chat: Chat) -> list[int]:
        parts = [self._llama.tokenize(part.encode(), add_bos=False, special=True) for part in chat.prompt.split(IMAGE)]
        if chat.image is None:
            return [token for part in parts for token in part]
        words = random.Random(chat.image.tobytes())
        picture = [words.randrange(FIRST_WORD, LAST_WORD) for _ in range(PICTURE_TOKENS)]
        return [*parts[0], *picture, *parts[1]]


def _use_plain_buffers() -> None:
    """Turns off the repacked weights of 0.3.36, with which quantised models crash in libggml-cpu."""
    default_params = llama_cpp.llama_model_default_params

    def plain_params() -> llama_cpp.llama_model_params:
        params = default_params()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = plain_params


if __name__ == "__main__":
    main(LlamaCppEngine)
