"""transformers' `generate`, one request after the other: as a service without batching runs it.

Options: `dtype`, a name of torch's.
"""

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import torch
from chat_server import Chat, Token, main, read_pieces
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.generation.streamers import BaseStreamer


class GenerateEngine:
    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        dtype = getattr(torch, options.get("dtype", "float32"))
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        self._pieces = read_pieces(folder)
        self._turn = threading.Lock()

    def answer(self, chat: Chat) -> Iterator[Token]:
        streamer = _Streamer()
        threading.Thread(target=self._generate, args=(chat, streamer), daemon=True).start()
        for _ in range(chat.tokens):
            item = streamer.tokens.get()
            if isinstance(item, Exception):
                raise item
            yield Token(self._pieces[item], streamer.prompt_tokens)

    def _generate(self, chat: Chat, streamer: "_Streamer") -> None:
        try:
            images = None if chat.image is None else [chat.image]
            inputs = self._processor(images=images, text=chat.prompt, add_special_tokens=False, return_tensors="pt")
            if images:
                inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            streamer.prompt_tokens = inputs["input_ids"].shape[1]
            with self._turn, torch.inference_mode():
                self._model.generate(
                    **inputs, max_new_tokens=chat.tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
                    streamer=streamer,
                )  # fmt: skip
        except Exception as error:
            streamer.tokens.put(error)


class _Streamer(BaseStreamer):
    """Puts each new token of `generate` into a queue."""

    def __init__(self) -> None:
        self.tokens: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
        self.prompt_tokens = 0
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self.tokens.put(int(value))
        self._is_prompt = False

    def end(self) -> None:
        pass


if __name__ == "__main__":
    main(GenerateEngine)
