"""Prompts: text and images in the order in which the model reads them.

Puts texts and chats into a conversation template (templates.py, chat_template.py) and images into texts. Knows no token
ids (tokenizer.py), no image bytes (image.py) and no HTTP.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import BadRequest
from .chat_template import ChatTemplate, ImagePlace, TemplateFailure, TemplateMessage
from .templates import EosToken, Template

IMAGE_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class ImageSource:
    """An image as the client sent it: base64, a `data:` URI or a URL. `path` is its path in the request."""

    data: str
    path: str


Segment = str | ImageSource | EosToken
ConversationTemplate = Template | ChatTemplate


@dataclass(frozen=True)
class TextInput:
    """One text of a request with its images, in order. `path` is the text's path in the request."""

    text: str
    images: tuple[ImageSource, ...]
    path: str


@dataclass(frozen=True)
class ChatMessage:
    """One message of a chat. Only user messages hold images."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """Text and images in the order in which the model reads them.

    `in_template` says that the prompt is a conversation in the template. Its answer ends where the template says, and
    is returned stripped. Any other prompt is a text that the model continues. `path` is the path in the request of
    the text or the messages.
    """

    segments: tuple[Segment, ...]
    in_template: bool
    path: str = field(compare=False)
    separator: str | None = None  # the template's, which ends the answer
    images: tuple[ImageSource, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        images = tuple(segment for segment in self.segments if isinstance(segment, ImageSource))
        object.__setattr__(self, "images", images)

    @property
    def text(self) -> str:
        """The prompt as characters, each image as `<image>`. `return_full_text` returns it before the answer."""
        return "".join(_segment_text(segment) for segment in self.segments)

    def without_image_data(self) -> "Prompt":
        """Returns the prompt with images that have their paths and no data."""
        return replace(self, segments=tuple(_without_image_data(segment) for segment in self.segments))


def raw_prompt(source: TextInput) -> Prompt:
    """Returns the text unchanged, to be continued. Each `<image>` in it becomes the next image."""
    return Prompt(_insert_images(source), in_template=False, path=source.path)


def formatted_prompt(source: TextInput, template: ConversationTemplate) -> Prompt:
    """Returns the text unchanged: a conversation that the client has put into the template."""
    return Prompt(_insert_images(source), True, source.path, template.separator)


def question_prompt(source: TextInput, template: ConversationTemplate) -> Prompt:
    """Returns a conversation whose first question is the text.

    Images stand where the text has an `<image>`. Else they follow the question in v0 and v1, one line each
    (LLaVA@a6b01a2 run_llava.py:100), and a chat template places them.
    """
    if isinstance(template, ChatTemplate):
        return _rendered_question(source, template)
    content = _insert_images(source) if IMAGE_PLACEHOLDER in source.text else _append_images(source.text, source.images)
    return _conversation(template, template.system, [("user", content)], source.path)


def chat_prompt(messages: Sequence[ChatMessage], template: ConversationTemplate, path: str) -> Prompt:
    """Returns the messages of a chat in the template. A system message replaces the template's system text.

    `<image>` in a message is text: images follow the text of their message, unless a chat template places them. `path`
    is the path of the messages.
    """
    if isinstance(template, ChatTemplate):
        rendered = [TemplateMessage(message.role, message.text, len(message.images)) for message in messages]
        return _rendered(template, rendered, [image for message in messages for image in message.images], path)
    if messages[0].role == "system":
        system, messages = messages[0].text, messages[1:]
    else:
        system = template.system
    contents = [(message.role, _append_images(message.text, message.images)) for message in messages]
    return _conversation(template, system, contents, path)


def _conversation(
    template: Template, system: str, contents: Iterable[tuple[str, tuple[Segment, ...]]], path: str
) -> Prompt:
    segments: list[Segment] = [system + template.greeting]
    for role, content in contents:
        if role == "user":
            segments += [template.user_prefix, *content]
        else:
            segments += [template.assistant_prefix, *content, *template.assistant_suffix]
    return Prompt(_join_texts([*segments, template.generation_prompt]), True, path, template.separator)


def _rendered_question(source: TextInput, template: ChatTemplate) -> Prompt:
    places_images = IMAGE_PLACEHOLDER in source.text
    text = source.text
    if places_images:
        _insert_images(source)  # raises if the numbers differ
        text = text.replace(IMAGE_PLACEHOLDER, template.image)
    message = TemplateMessage("user", text, len(source.images), places_images)
    return _rendered(template, [message], source.images, source.path)


def _rendered(
    template: ChatTemplate, messages: Sequence[TemplateMessage], images: Sequence[ImageSource], path: str
) -> Prompt:
    try:
        pieces = template.render(messages)
    except TemplateFailure as failure:
        raise BadRequest("invalid_request", f"the model's chat template refuses this chat: {failure}", path) from None
    num_places = sum(isinstance(piece, ImagePlace) for piece in pieces)
    if num_places != len(images):
        raise BadRequest(
            "invalid_request",
            f"the model's chat template has places for {num_places} of the {len(images)} images",
            path,
        )
    remaining = iter(images)
    segments = (next(remaining) if isinstance(piece, ImagePlace) else piece for piece in pieces)
    return Prompt(_join_texts(segments), True, path, template.separator)


def _without_image_data(segment: Segment) -> Segment:
    return ImageSource("", segment.path) if isinstance(segment, ImageSource) else segment


def _segment_text(segment: Segment) -> str:
    if isinstance(segment, str):
        return segment
    return segment.text if isinstance(segment, EosToken) else IMAGE_PLACEHOLDER


def _append_images(text: str, images: tuple[ImageSource, ...]) -> tuple[Segment, ...]:
    segments: list[Segment] = [text]
    for image in images:
        segments += ["\n", image]
    return tuple(segments)


def _insert_images(source: TextInput) -> tuple[Segment, ...]:
    first, *rest = source.text.split(IMAGE_PLACEHOLDER)
    if len(rest) != len(source.images):
        raise BadRequest(
            "image_count_mismatch",
            f"the text has {len(rest)} {IMAGE_PLACEHOLDER} and {len(source.images)} images were sent for it; "
            f"send one image for each {IMAGE_PLACEHOLDER}",
            source.path,
        )
    segments: list[Segment] = [first]
    for image, text in zip(source.images, rest, strict=True):
        segments += [image, text]
    return tuple(segments)


def _join_texts(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Joins neighbouring texts: SentencePiece must encode each stretch of text as a whole."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        else:
            joined.append(segment)
    return tuple(joined)
