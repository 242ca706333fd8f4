"""What the model reads: rows of a request laid out as text and images, in LLaVA v0's own words.

Knows the conversation template and where an image goes. Knows no token ids (tokenizer.py), no image bytes
(image.py) and no HTTP.
"""

from dataclasses import dataclass, field
from typing import Literal

from .errors import BadRequest

IMAGE_PLACEHOLDER = "<image>"

# The prompt the authors served every LLaVA of that time with (LLaVA@ff9b89f llava/conversation.py "multimodal").
# The missing space between sentences, the two spaces and the newline are theirs.
SEPARATOR = "###"
SYSTEM = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab."
    "You are able to understand the visual content that the user provides, and assist the user with a variety of "
    "tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail."
)
GREETING = "###Human: Hi!###Assistant: Hi there!  How can I help you today?\n"
OPEN_TURN = "###Assistant:"


@dataclass(frozen=True)
class ImageSource:
    """An image as the caller sent it: base64, a `data:` URI or a URL. `param` is its path in the request."""

    data: str
    param: str


Segment = str | ImageSource


@dataclass(frozen=True)
class TextRow:
    """One prompt with its images, in order. `param` is its path in the request."""

    text: str
    images: tuple[ImageSource, ...]
    param: str


@dataclass(frozen=True)
class Turn:
    """One message of a chat; images are allowed in user turns alone."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True)
class ChatRow:
    """A conversation that ends with the user's turn. `param` is its path in the request."""

    turns: tuple[Turn, ...]
    param: str


@dataclass(frozen=True)
class Prompt:
    """Text and images in the order the model reads them.

    `is_question` says that an answer is wanted: it ends at the template's separator and is returned stripped. A raw
    prompt is continued as it stands. `param` is the path in the request of what it was made of.
    """

    segments: tuple[Segment, ...]
    is_question: bool
    param: str = field(compare=False)

    @property
    def text(self) -> str:
        """The prompt as characters, each image as `<image>`: what `return_full_text` gives back."""
        return "".join(s if isinstance(s, str) else IMAGE_PLACEHOLDER for s in self.segments)

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(s for s in self.segments if isinstance(s, ImageSource))


def raw(row: TextRow) -> Prompt:
    """The text as it stands, each literal `<image>` replaced by the row's next image."""
    return Prompt(_place(row), is_question=False, param=row.param)


def dialogue(row: TextRow) -> Prompt:
    """The text as it stands, known to be a conversation in the template that waits for its answer."""
    return Prompt(_place(row), is_question=True, param=row.param)


def question(row: TextRow) -> Prompt:
    """The text as the first question of a conversation.

    Images follow the question, one line each (LLaVA@a6b01a2 run_llava.py:100), unless it places them itself.
    """
    said = _place(row) if IMAGE_PLACEHOLDER in row.text else _images_last(row.text, row.images)
    return _conversation(SYSTEM, [("Human", said)], row.param)


def chat(row: ChatRow) -> Prompt:
    """The turns of a chat in the template; a system turn takes the place of the template's own."""
    turns = list(row.turns)
    system = turns.pop(0).text if turns[0].role == "system" else SYSTEM
    speakers = {"user": "Human", "assistant": "Assistant"}
    said = [(speakers[turn.role], _images_last(turn.text, turn.images)) for turn in turns]
    return _conversation(system, said, row.param)


def _conversation(system: str, turns: list[tuple[str, tuple[Segment, ...]]], param: str) -> Prompt:
    segments: list[Segment] = [system + GREETING]
    for speaker, said in turns:
        segments += [f"{SEPARATOR}{speaker}: ", *said]
    return Prompt(_joined([*segments, OPEN_TURN]), is_question=True, param=param)


def _images_last(text: str, images: tuple[ImageSource, ...]) -> tuple[Segment, ...]:
    segments: list[Segment] = [text]
    for image in images:
        segments += ["\n", image]
    return tuple(segments)


def _place(row: TextRow) -> tuple[Segment, ...]:
    pieces = row.text.split(IMAGE_PLACEHOLDER)
    if len(pieces) - 1 != len(row.images):
        raise BadRequest(
            "image_count_mismatch",
            f"the text has {len(pieces) - 1} {IMAGE_PLACEHOLDER} and {len(row.images)} images were sent for it; "
            f"send one image for each {IMAGE_PLACEHOLDER}",
            row.param,
        )
    segments: list[Segment] = [pieces[0]]
    for image, piece in zip(row.images, pieces[1:], strict=True):
        segments += [image, piece]
    return tuple(segments)


def _joined(segments: list[Segment]) -> tuple[Segment, ...]:
    """Neighbouring texts become one: SentencePiece must see a stretch of text whole."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        else:
            joined.append(segment)
    return tuple(joined)
