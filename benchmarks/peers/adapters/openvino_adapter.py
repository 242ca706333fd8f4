"""OpenVINO GenAI's continuous batching, with pictures.

As in OpenVINO Model Server, each request is added by the thread of its connection, which also computes its picture,
and one thread runs the steps. Options: `precision` (INFERENCE_PRECISION_HINT), `prefix_caching` (true
or false) and `kv_cache_gb`. The scheduler's other settings are the library's: batches of up to 256 tokens.
Batches of 512 and 2048, and pictures on the engine's thread, were no faster on two cores.
"""

import queue
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from chat_server import Chat, Token, main, read_pieces


class OpenVinoEngine:
    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = int(options.get("kv_cache_gb", "2"))
        scheduler.enable_prefix_caching = options.get("prefix_caching", "true") == "true"
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            folder, scheduler, "CPU", {"INFERENCE_PRECISION_HINT": options.get("precision", "bf16")}
        )
        self._pieces = read_pieces(folder)
        self._ids = count()
        self._waiting: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, chat: Chat) -> Iterator[Token]:
        request = _Request(chat)
        self._waiting.put(request)
        for _ in range(chat.tokens):
            item = request.tokens.get()
            if isinstance(item, Exception):
                raise item
            yield Token(self._pieces[item])

    def _run(self) -> None:
        """Runs the steps. While there is no request it waits for one."""
        running: list[_Request] = []
        while True:
            try:
                if not running or not self._waiting.empty():
                    running.append(self._waiting.get())
                    self._add(running[-1])
                self._pipeline.step()
                for request in running:
                    request.read()
            except Exception as error:
                for request in running:
                    request.tokens.put(error)
                running = []
            running = [request for request in running if request.remaining > 0]

    def _add(self, request: "_Request") -> None:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=request.remaining, ignore_eos=True, do_sample=False, apply_chat_template=False
        )
        prompt = request.chat.prompt.removeprefix("<s>")  # the tokenizer writes BOS itself
        image = request.chat.image
        images = [] if image is None else [openvino.Tensor(np.asarray(image)[None])]
        request.handle = self._pipeline.add_request(next(self._ids), prompt, images, config)


class _Request:
    """A request, its handle in the pipeline, and the queue of its new tokens."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.remaining = chat.tokens
        self.handle: Any = None
        self.tokens: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def read(self) -> None:
        while self.handle.can_read():
            for output in self.handle.read().values():
                for token in output.generated_ids:
                    self.tokens.put(token)
                    self.remaining -= 1


if __name__ == "__main__":
    main(OpenVinoEngine)
