"""Dialogues as token ids, built by the service's own prompt template and tokenizer, so that training equals serving."""

import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from sentencepiece import SentencePieceProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))  # the recipe runs without an installed service

from llava_serving.inputs.prompt import ChatMessage, ImageSource, Segment, TextInput, chat_prompt, question_prompt
from llava_serving.inputs.templates import V0
from llava_serving.inputs.tokenizer import ImageTokens, Tokenizer

NUM_PATCHES = 16
IGNORE = -100  # cross-entropy skips these targets
IMAGE = (ImageSource("", ""),)


def question_text(text: str) -> str:
    """Returns the prompt of one question as text."""
    return question_prompt(TextInput(text, (), ""), V0).text


class Dialogues:
    """Turns questions and answers into ids and targets."""

    def __init__(self, model_file: Path) -> None:
        self.text = _CachedSentencePiece(model_file)
        size = self.text.vocab_size()
        self.image = ImageTokens(patch=size, count=NUM_PATCHES, start=size + 1, end=size + 2)
        self.tokenizer = Tokenizer(self.text, self.image)
        opening = question_text("").removesuffix("###Assistant:").rstrip()
        self.prefix = self.encode([opening])  # the beginning of every prompt

    def encode(self, segments: Iterable[Segment]) -> list[int]:
        """Returns the token ids of a prompt."""
        return list(self.tokenizer.encode(segments).token_ids)

    def question(self, text: str, with_image: bool) -> list[int]:
        """Returns the token ids of the prompt of one question."""
        return self.encode(question_prompt(TextInput(text, IMAGE if with_image else (), ""), V0).segments)

    def answer(self, text: str) -> list[int]:
        """Returns the token ids of the answer and of the separator that ends it."""
        start = self.encode(["###Assistant:"])
        return self.encode([f"###Assistant: {text}{V0.separator}"])[len(start) :]

    def conversation(
        self, exchanges: Sequence[tuple[str, str]], with_image: bool, limit: int
    ) -> tuple[list[int], list[int]]:
        """Returns the token ids after the common prefix, and the targets, which are IGNORE outside the answers.

        Takes as many exchanges as fit into `limit` ids.
        """
        ids: list[int] = list(self.prefix)
        targets = [IGNORE] * len(ids)
        messages: list[ChatMessage] = []
        for text, answer in exchanges:
            messages.append(ChatMessage("user", text, IMAGE if with_image and not messages else ()))
            prompt = self.encode(_chat(messages))
            with_answer = self.encode(_chat(messages, f" {answer}{V0.separator}"))
            if len(with_answer) - len(self.prefix) > limit:
                break
            targets += [IGNORE] * (len(prompt) - len(targets)) + with_answer[len(prompt) :]
            ids = with_answer
            messages.append(ChatMessage("assistant", answer))
        return ids[len(self.prefix) :], targets[len(self.prefix) :]


def _chat(messages: list[ChatMessage], answer: str = "") -> list[Segment]:
    segments = list(chat_prompt(messages, V0, "").segments)
    last = segments[-1]
    assert isinstance(last, str)
    return [*segments[:-1], last + answer]


class _CachedSentencePiece:
    """A SentencePiece processor with a cache, because training encodes the same few thousand texts many times."""

    def __init__(self, model_file: Path) -> None:
        self._model = SentencePieceProcessor(model_file=str(model_file))
        self.encode = lru_cache(200_000)(self._model.encode)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)
