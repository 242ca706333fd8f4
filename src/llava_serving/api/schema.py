"""The forms of a request body, one pydantic model each, and the error messages about their fields."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from ..errors import BadRequest

MAX_TOP_LOGPROBS = 20
MAX_NAME_CHARACTERS = 100  # of a name that may be a misspelt one
Column = Literal["image", "prompt", "direct_question", "text", "input_string"]
# Each list ends at its first wrong item: pydantic's errors about a million items take 500 MB.
Strings = Annotated[list[str], Field(fail_fast=True)]
Images = Annotated[list[str | Strings | None], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]


def as_list(value: object) -> object:
    """Puts a single string into a list, so that a client may send it bare."""
    return [value] if isinstance(value, str) else value


def _as_image_url(value: object) -> object:
    """Puts a bare URL into an ImageUrl, so that a client may send it as a string."""
    return {"url": value} if isinstance(value, str) else value


class StrictModel(BaseModel):
    """A JSON object without other fields. A field that is null is not set.

    An integral float is accepted as an integer, because some JSON writers have only floats.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        unknown = next((name for name, value in data.items() if name not in cls.model_fields and value is not None), "")
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() and cls._is_integer(name) else value
            for name, value in data.items()
            if value is not None and (name in cls.model_fields or name == unknown)  # one error about names is enough
        }

    @classmethod
    def _is_integer(cls, name: str) -> bool:
        annotation = cls.model_fields[name].annotation if name in cls.model_fields else None
        return int in (annotation, *get_args(annotation))


class PromptsBody(StrictModel):
    input_string: Annotated[Texts, BeforeValidator(as_list, json_schema_input_type=str | Texts)]
    images: Annotated[Images | None, BeforeValidator(as_list, json_schema_input_type=str | Images | None)] = None


class ListBody(StrictModel):
    input_data: Texts


class TableBody(StrictModel):
    columns: Annotated[list[Column], Field(min_length=1, fail_fast=True)]
    index: list[Any] | None = None
    data: Annotated[list[Annotated[list[str | None], Field(fail_fast=True)]], Field(min_length=1, fail_fast=True)]


class ImageUrl(StrictModel):
    url: str
    detail: Any = None  # a hint: the vision tower has only one resolution


class Part(StrictModel):
    """A piece of a message's content: its `text`, or its `image_url`, according to `type`."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: Annotated[
        ImageUrl | None, BeforeValidator(_as_image_url, json_schema_input_type=str | ImageUrl | None)
    ] = None
    cache_control: Any = None  # hints for other services
    prompt_cache_breakpoint: Any = None


class Message(StrictModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: Any = None  # the templates have no place for names


class ChatBody(StrictModel):
    input_string: Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class StreamOptions(StrictModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class ChatCompletionBody(StrictModel):
    """OpenAI's chat completion, without the parameters and the fields of openai_fields.py."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    model: str = ""
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    stream_options: StreamOptions | None = None


class CompletionBody(StrictModel):
    """OpenAI's legacy text completion, without the parameters and the fields of openai_fields.py."""

    prompt: Annotated[Texts, BeforeValidator(as_list, json_schema_input_type=str | Texts)]
    model: str = ""
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(default=None, ge=1)
    stream_options: StreamOptions | None = None


# The models of nested objects, by the field that holds them.
NESTED_MODELS: dict[str, type[BaseModel]] = {
    "messages": Message, "input_string": Message, "content": Part, "image_url": ImageUrl,
}  # fmt: skip
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
    errors = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")  # a misspelt name explains the rest
    first_field = errors[0]["loc"][0]
    located = [(_location(error), error) for error in errors if error["loc"][0] == first_field]
    deepest = max((location for location, _ in located), key=len)
    causes = [error for location, error in located if location == deepest]
    field, *rest = deepest
    param = ".".join(part for part in (path, sent_names.get(str(field), str(field))) if part)
    param += "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    if causes[0]["type"] == "extra_forbidden":
        name, fields = str(deepest[-1]), _fields_at(deepest[:-1], model)
        return f"{param.rpartition(name)[0]}{name!r} is not accepted here; {accepted_names(name, fields)}", param
    messages = dict.fromkeys(map(_plain_message, causes))
    return f"{param}: {', or '.join(messages)}", param


def _fields_at(location: Sequence[int | str], model: type[BaseModel]) -> Iterable[str]:
    """Returns the names of the fields of the object at a location in the body."""
    names = [part for part in location if isinstance(part, str)]
    return NESTED_MODELS[names[-1]].model_fields if names and names[-1] in NESTED_MODELS else model.model_fields


def _plain_message(error: ErrorDetails) -> str:
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "input should be a JSON object"
    message = error["msg"].partition(" after validation")[0]
    return message[0].lower() + message[1:]


def accepted_names(name: str, known: Iterable[str], hidden: Iterable[str] = ()) -> str:
    """Returns the end of a message about an unknown name: the name that was probably meant, and the known ones.

    `hidden` names are suggested, but not listed.
    """
    known = sorted(known)
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    long = len(name) > MAX_NAME_CHARACTERS  # comparing it would take minutes
    nearest = [] if long else difflib.get_close_matches(snake_case, [*known, *hidden], n=1, cutoff=0.7)
    suggestion = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{suggestion}accepted are {', '.join(known)}"


def _location(error: ErrorDetails) -> tuple[int | str, ...]:
    """Returns the error's location without pydantic's names of union members ("str", "list[...]")."""
    *path, last = error["loc"]
    location = [part for part in path if isinstance(part, int) or not _is_union_member(part)]
    if error["type"] == "extra_forbidden" or isinstance(last, int) or not path or not _is_union_member(last):
        location.append(last)
    return tuple(location)


def _is_union_member(part: str) -> bool:
    return part == "str" or part.startswith("list[")
