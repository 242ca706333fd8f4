"""Token ids exactly as LLaVA was trained, and the bytes of a token.

Uses SentencePiece itself: transformers 5's LlamaTokenizer differs from LLaMA's tokenizer.model on text that begins
with a space. Every id comes from the checkpoint's files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from ..errors import StartupError
from ..model_files import damage_hint, read_json
from .prompt import ImageSource, Segment
from .templates import EosToken

IMAGE_PATCH = "<im_patch>"
IMAGE_START = "<im_start>"
IMAGE_END = "<im_end>"
ADDED_TOKEN_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


@dataclass(frozen=True)
class ImageTokens:
    """The ids of one image in a prompt: `start`, then `count` times `patch`, then `end`.

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


@dataclass(frozen=True)
class EncodedPrompt:
    """The token ids of a prompt. `image_starts` has the index of each image's first patch token in `token_ids`."""

    token_ids: tuple[int, ...]
    image_starts: tuple[int, ...]


class Spacing(Enum):
    """How text beside a special token is encoded. SentencePiece begins each text with a space that is not in it."""

    STRIPPED = "white space beside the token is dropped, and the text after it is a new text"  # v0
    NEW_TEXT = "the text after the token is a new text"  # LLaVA 1.5
    SAME_TEXT = "the text after the token goes on"  # tokenizers with Metaspace "first"


GUARD = "\n"  # in no piece of LLaMA's: encoded as a byte, which never joins the characters after it


class Tokenizer:
    """Encodes prompts, and decodes one token at a time."""

    def __init__(self, model: SentencePieceProcessor, image: ImageTokens, spacing: Spacing = Spacing.STRIPPED) -> None:
        self._model = model
        self.image = image
        self._spacing = spacing
        self.bos_id: int = model.bos_id()
        self.eos_id: int = model.eos_id()
        self.text_vocab_size: int = model.vocab_size()  # added tokens have the ids from here on
        self._longest_token = max(len(model.id_to_piece(i)) for i in range(self.text_vocab_size))

    def encode(self, segments: Iterable[Segment]) -> EncodedPrompt:
        """Returns BOS and the ids of the segments, with image tokens for each image.

        For v0, drops white space next to images and EOS tokens, and encodes the text after them on its own, as the slow
        tokenizer did that v0 was trained with. Text never becomes a special token: `</s>` in it is four characters.
        """
        token_ids, image_starts = [self.bos_id], []
        for index, segment in enumerate(self._prepared(segments)):
            if isinstance(segment, ImageSource):
                image_starts.append(len(token_ids) + self.image.ids.index(self.image.patch))
            if isinstance(segment, str):
                token_ids += self._text_ids(segment, is_first=not index)
            else:
                token_ids += self._special_ids(segment)
        return EncodedPrompt(tuple(token_ids), tuple(image_starts))

    def _prepared(self, segments: Iterable[Segment]) -> list[Segment]:
        return _strip_texts(segments) if self._spacing is Spacing.STRIPPED else list(segments)

    def _text_ids(self, text: str, is_first: bool) -> list[int]:
        ids: list[int]
        if is_first or self._spacing is not Spacing.SAME_TEXT:
            ids = self._model.encode(text)
        else:
            ids = self._model.encode(GUARD + text)[len(self._model.encode(GUARD)) :]
        return ids

    def min_token_count(self, segments: Iterable[Segment]) -> int:
        """Returns a lower bound on the number of ids from `encode`.

        Encodes nothing: encoding a text of several megabytes takes seconds.
        """
        return 1 + sum(
            -(-len(segment) // self._longest_token) if isinstance(segment, str) else len(self._special_ids(segment))
            for segment in self._prepared(segments)
        )

    @property
    def is_v0(self) -> bool:
        """Whether special tokens take the white space beside them, as in v0."""
        return self._spacing is Spacing.STRIPPED

    def piece(self, token_id: int) -> str:
        """Returns the text of one of SentencePiece's own tokens."""
        piece: str = self._model.id_to_piece(token_id)
        return piece

    @property
    def longest_token(self) -> int:
        """The number of characters of the longest token."""
        return self._longest_token

    def _special_ids(self, segment: ImageSource | EosToken) -> list[int]:
        return self.image.ids if isinstance(segment, ImageSource) else [self.eos_id]

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the UTF-8 bytes that a generated token adds to the text. They may be a part of a character."""
        if token_id >= self.text_vocab_size or self._model.is_control(token_id):
            return b""
        if self._model.is_byte(token_id):
            return bytes([int(self._model.id_to_piece(token_id)[3:5], 16)])  # "<0x0A>"
        if self._model.is_unknown(token_id):
            return " \u2047 ".encode()  # SentencePiece decodes <unk> to this
        return self._model.id_to_piece(token_id).replace("\u2581", " ").encode()


def _strip_texts(segments: Iterable[Segment]) -> list[Segment]:
    """Strips white space from texts where they touch an image or an EOS token."""
    segments = list(segments)
    stripped: list[Segment] = []
    for i, segment in enumerate(segments):
        if isinstance(segment, str):
            segment = segment.rstrip() if i + 1 < len(segments) else segment
            segment = segment.lstrip() if i > 0 else segment
        stripped.append(segment)
    return stripped


def load_sentencepiece(directory: Path) -> SentencePieceProcessor:
    """Loads LLaMA's `tokenizer.model` from a checkpoint folder. Raises StartupError."""
    path = directory / "tokenizer.model"
    if not path.is_file():
        raise StartupError(
            f"no tokenizer.model in {directory}: LLaMA's SentencePiece model belongs in the folder of the weights "
            "(tokenizer.json alone does not reproduce LLaMA's token ids)"
        )
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise StartupError(f"{path} is not a SentencePiece model; {damage_hint(path)}") from error


def added_tokens(directory: Path) -> dict[str, int]:
    """Returns the ids of the tokens that a checkpoint adds to SentencePiece's, by token.

    Reads the first of ADDED_TOKEN_FILES that holds a list: versions of transformers differ in the file they write.
    """
    ids, config, fast_tokenizer = (directory / file for file in ADDED_TOKEN_FILES)
    if ids.is_file():
        return read_json(ids)
    if config.is_file() and (decoder := read_json(config).get("added_tokens_decoder")):
        return {token["content"]: int(token_id) for token_id, token in decoder.items()}
    if fast_tokenizer.is_file():
        return {token["content"]: token["id"] for token in read_json(fast_tokenizer).get("added_tokens", [])}
    return {}
