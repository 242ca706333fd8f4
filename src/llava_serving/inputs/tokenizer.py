"""Token ids exactly as LLaVA v0 was trained, and back to text.

SentencePiece itself is used: transformers 5's LlamaTokenizer differs from LLaMA's tokenizer.model on text that begins
with a space. Every id comes from the checkpoint's files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..model_files import hint, read_json
from .prompt import ImageSource, Segment
from .templates import EndOfText

IMAGE_PATCH = "<im_patch>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
ADDED_TOKEN_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class ImageTokens:
    """The ids that stand for one image: `start`, `count` times `patch`, `end`.

    `start` and `end` are None for checkpoints trained without the two markers.
    """

    patch: int
    count: int
    start: int | None
    end: int | None

    @property
    def ids(self) -> list[int]:
        patches = [self.patch] * self.count
        return patches if self.start is None or self.end is None else [self.start, *patches, self.end]


class Tokenizer:
    """Text and images to ids, and an id to its bytes."""

    def __init__(self, model: SentencePieceProcessor, image: ImageTokens) -> None:
        self._model = model
        self.image = image
        self.bos_id: int = model.bos_id()
        self.eos_id: int = model.eos_id()
        self.text_vocab_size: int = model.vocab_size()  # ids from here on are added tokens
        self._longest_piece = max(len(model.id_to_piece(i)) for i in range(self.text_vocab_size))

    def encode(self, segments: Iterable[Segment]) -> list[int]:
        """BOS and the ids of the segments, an image as its image tokens.

        White space beside a token that is no text is dropped and the text after it is encoded afresh, as the slow
        tokenizer that v0 was trained with did. Text is only ever text: `</s>` in it is four characters.
        """
        ids = [self.bos_id]
        for segment in _stripped(segments):
            ids += self._model.encode(segment) if isinstance(segment, str) else self._special(segment)
        return ids

    def image_starts(self, token_ids: list[int]) -> list[int]:
        """Where the patches of each image begin in ids from `encode`."""
        return [place for place, token in enumerate(token_ids) if token == self.image.patch][:: self.image.count]

    def fewest_tokens(self, segments: Iterable[Segment]) -> int:
        """A number of ids that `encode` gives at the least, without encoding: a text of megabytes takes seconds."""
        return 1 + sum(
            -(-len(segment) // self._longest_piece) if isinstance(segment, str) else len(self._special(segment))
            for segment in _stripped(segments)
        )

    def _special(self, segment: ImageSource | EndOfText) -> list[int]:
        return self.image.ids if isinstance(segment, ImageSource) else [self.eos_id]

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a generated token adds to the text; one token may hold part of a character."""
        if token_id >= self.text_vocab_size or self._model.is_control(token_id):
            return b""
        if self._model.is_byte(token_id):
            return bytes([int(self._model.id_to_piece(token_id)[3:5], 16)])  # "<0x0A>"
        if self._model.is_unknown(token_id):
            return " \u2047 ".encode()  # SentencePiece's own surface for <unk>
        return self._model.id_to_piece(token_id).replace("\u2581", " ").encode()


def _stripped(segments: Iterable[Segment]) -> list[Segment]:
    """Without the white space beside what is no text."""
    segments = list(segments)
    stripped: list[Segment] = []
    for i, segment in enumerate(segments):
        if isinstance(segment, str):
            segment = segment.rstrip() if i + 1 < len(segments) else segment
            segment = segment.lstrip() if i > 0 else segment
        stripped.append(segment)
    return stripped


def load_sentencepiece(directory: Path) -> SentencePieceProcessor:
    """LLaMA's `tokenizer.model` from a checkpoint folder."""
    path = directory / "tokenizer.model"
    if not path.is_file():
        raise StartupError(
            f"no tokenizer.model in {directory}: LLaMA's SentencePiece model belongs beside the weights "
            "(tokenizer.json alone does not reproduce LLaMA's token ids)"
        )
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise StartupError(f"{path} is not a SentencePiece model; {hint(path)}") from error


def added_tokens(directory: Path) -> dict[str, int]:
    """The tokens a checkpoint adds to SentencePiece's, by name, from whichever file transformers wrote them to."""
    by_name, config, whole = (directory / file for file in ADDED_TOKEN_FILES)
    if by_name.is_file():
        return read_json(by_name)
    if config.is_file() and (decoder := read_json(config).get("added_tokens_decoder")):
        return {token["content"]: int(token_id) for token_id, token in decoder.items()}
    if whole.is_file():
        return {token["content"]: token["id"] for token in read_json(whole).get("added_tokens", [])}
    return {}
