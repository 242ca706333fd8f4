"""The shapes a request body may have, one pydantic model each, and what is said when it has none of them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from ..errors import BadRequest

MAX_TOP_LOGPROBS = 20
Column = Literal["image", "prompt", "direct_question", "text"]
Images = list[str | list[str] | None]
Texts = Annotated[list[str], Field(min_length=1)]


def as_list(value: object) -> object:
    """A string where a list of strings is meant."""
    return [value] if isinstance(value, str) else value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PromptsBody(_Strict):
    input_string: Annotated[
        list[str], BeforeValidator(as_list, json_schema_input_type=str | Texts), Field(min_length=1)
    ]
    images: Annotated[Images | None, BeforeValidator(as_list, json_schema_input_type=str | Images | None)] = None


class ListBody(_Strict):
    input_data: Annotated[list[str], Field(min_length=1)]


class TableBody(_Strict):
    columns: Annotated[list[Column], Field(min_length=1)]
    index: list[Any] | None = None
    data: Annotated[list[list[str | None]], Field(min_length=1)]


class ImageUrl(_Strict):
    url: str
    detail: Literal["auto", "low"] | None = None  # the tower has one resolution, a low one


class Part(_Strict):
    """A piece of a message's content: `text` or `image_url`, whichever `type` names."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1)]


class ChatBody(_Strict):
    input_string: Annotated[list[Message], Field(min_length=1)]


class StreamOptions(_Strict):
    include_usage: bool = False


class ResponseFormat(_Strict):
    type: Literal["text"]


class ChatCompletionBody(_Strict):
    """The last four are what OpenAI's clients send unasked: they are accepted where they ask for nothing."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str = ""
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    response_format: ResponseFormat | None = None


Shape = TypeVar("Shape", bound=BaseModel)


def validate(
    shape: type[Shape],
    data: Mapping[str, Any],
    path: str,
    names: Mapping[str, str] | None = None,
    code: str = "invalid_request",
) -> Shape:
    """`data` as a `shape`, or BadRequest about the part of the request at `path`.

    `names` are the caller's names for fields that have aliases.
    """
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        message, param = _told(found, shape, path, names or {})
        raise BadRequest(code, message, param) from None


def _told(found: list[ErrorDetails], shape: type[BaseModel], path: str, names: Mapping[str, str]) -> tuple[str, str]:
    """What pydantic found first and where, in the caller's own names.

    Of the alternatives of a union the one that matched furthest tells most; those that matched equally far are joined.
    """
    first_field = found[0]["loc"][0]
    located = [(_location(e), e) for e in found if e["loc"][0] == first_field]
    where = max((location for location, _ in located), key=len)
    causes = [e for location, e in located if location == where]
    field, *rest = where
    param = ".".join(part for part in (path, names.get(str(field), str(field))) if part)
    param += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    if causes[0]["type"] == "extra_forbidden" and not rest:
        known = ", ".join(shape.model_fields)
        return f"{field!r} is not accepted here; accepted are {known}", param
    messages = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in causes)
    return f"{param}: {', or '.join(messages)}", param


def _location(error: ErrorDetails) -> tuple[int | str, ...]:
    """Without the names of union members ("str", "list[...]"), which are pydantic's and not in the request."""
    *path, last = error["loc"]
    kept = [part for part in path if isinstance(part, int) or not _is_union_member(part)]
    if error["type"] == "extra_forbidden" or isinstance(last, int) or not path or not _is_union_member(last):
        kept.append(last)
    return tuple(kept)


def _is_union_member(part: str) -> bool:
    return part == "str" or part.startswith("list[")
