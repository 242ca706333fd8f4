"""What the model reads: rows of a request laid out as text and images, in LLaVA's own words.

Knows the conversation templates and where an image goes. Knows no token ids (tokenizer.py), no image bytes
(image.py) and no HTTP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..errors import BadRequest
from .templates import EndOfText, Template

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class ImageSource:
    """An image as the caller sent it: base64, a `data:` URI or a URL. `param` is its path in the request."""

    data: str
    param: str


Segment = str | ImageSource | EndOfText


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

    `is_question` says that an answer is wanted: it ends where the template says and is returned stripped. A raw prompt
    is continued as it stands. `param` is the path in the request of what it was made of.
    """

    segments: tuple[Segment, ...]
    is_question: bool
    param: str = field(compare=False)

    @property
    def text(self) -> str:
        """The prompt as characters, each image as `<image>`: what `return_full_text` gives back."""
        return "".join(_written(segment) for segment in self.segments)

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(s for s in self.segments if isinstance(s, ImageSource))


def raw(row: TextRow) -> Prompt:
    """The text as it stands, each literal `<image>` replaced by the row's next image."""
    return Prompt(_place(row), is_question=False, param=row.param)


def dialogue(row: TextRow) -> Prompt:
    """The text as it stands, known to be a conversation in the template that waits for its answer."""
    return Prompt(_place(row), is_question=True, param=row.param)


def question(row: TextRow, template: Template) -> Prompt:
    """The text as the first question of a conversation.

    Images follow the question, one line each (LLaVA@a6b01a2 run_llava.py:100), unless it places them itself.
    """
    said = _place(row) if IMAGE_PLACEHOLDER in row.text else _images_last(row.text, row.images)
    return _conversation(template, template.system, [("user", said)], row.param)


def chat(row: ChatRow, template: Template) -> Prompt:
    """The turns of a chat in the template; a system turn takes the place of the template's own."""
    turns = list(row.turns)
    system = turns.pop(0).text if turns[0].role == "system" else template.system
    said = [(turn.role, _images_last(turn.text, turn.images)) for turn in turns]
    return _conversation(template, system, said, row.param)


def _conversation(
    template: Template, system: str, turns: Sequence[tuple[str, tuple[Segment, ...]]], param: str
) -> Prompt:
    segments: list[Segment] = [system + template.greeting]
    for role, said in turns:
        if role == "user":
            segments += [template.before_user, *said]
        else:
            segments += [template.before_assistant, *said, *template.after_assistant]
    return Prompt(_joined([*segments, template.open_turn]), is_question=True, param=param)


def _written(segment: Segment) -> str:
    if isinstance(segment, str):
        return segment
    return segment.text if isinstance(segment, EndOfText) else IMAGE_PLACEHOLDER


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
