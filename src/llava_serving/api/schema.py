"""The forms of a request body, one pydantic model each, and the error messages about their fields."""

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
    """Puts a single string into a list, so that a client may send it bare."""
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
    detail: Literal["auto", "low"] | None = None  # the vision tower has only one resolution, which is low


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
    """OpenAI's chat completion, less the parameters.

    OpenAI's clients send the last four fields by default. They are accepted with values that have no effect.
    """

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str = ""
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream_options: StreamOptions | None = None
    user: str | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    response_format: ResponseFormat | None = None


Model = TypeVar("Model", bound=BaseModel)


def validate(
    model: type[Model],
    data: Mapping[str, Any],
    path: str,
    sent_names: Mapping[str, str] | None = None,
    code: str = "invalid_request",
) -> Model:
    """Returns `data` as a `model`. Raises BadRequest about the part of the request at `path`.

    `sent_names` has the names that the client sent, by field, where the two may differ.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        message, param = _describe(errors, model, path, sent_names or {})
        raise BadRequest(code, message, param) from None


def _describe(
    errors: list[ErrorDetails], model: type[BaseModel], path: str, sent_names: Mapping[str, str]
) -> tuple[str, str]:
    """Returns the message and the path of pydantic's errors about the first wrong field, in the client's names.

    Of the members of a union, the one whose error lies deepest is most likely the one that the client meant. Messages
    of members that fail at the same location are joined.
    """
    first_field = errors[0]["loc"][0]
    located = [(_location(error), error) for error in errors if error["loc"][0] == first_field]
    deepest = max((location for location, _ in located), key=len)
    causes = [error for location, error in located if location == deepest]
    field, *rest = deepest
    param = ".".join(part for part in (path, sent_names.get(str(field), str(field))) if part)
    param += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    if causes[0]["type"] == "extra_forbidden" and not rest:
        known = ", ".join(model.model_fields)
        return f"{field!r} is not accepted here; accepted are {known}", param
    messages = dict.fromkeys(error["msg"][0].lower() + error["msg"][1:] for error in causes)
    return f"{param}: {', or '.join(messages)}", param


def _location(error: ErrorDetails) -> tuple[int | str, ...]:
    """Returns the error's location without pydantic's names of union members ("str", "list[...]")."""
    *path, last = error["loc"]
    location = [part for part in path if isinstance(part, int) or not _is_union_member(part)]
    if error["type"] == "extra_forbidden" or isinstance(last, int) or not path or not _is_union_member(last):
        location.append(last)
    return tuple(location)


def _is_union_member(part: str) -> bool:
    return part == "str" or part.startswith("list[")
