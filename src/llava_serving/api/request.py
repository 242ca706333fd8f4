"""From the bytes of a body to a ScoreRequest: the five forms of request, told apart by their shape.

Everything a caller can get wrong about the form is told here or in schema.py; what the images hold is image.py's.
"""

import codecs
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pydantic_core

from ..errors import BadRequest
from ..inputs.prompt import (
    IMAGE_PLACEHOLDER,
    ChatRow,
    ImageSource,
    Prompt,
    TextRow,
    Turn,
    chat,
    dialogue,
    question,
    raw,
)
from ..inputs.templates import Template
from .parameters import CHAT_COMPLETION_ALIASES, GivenParameters, Parameters, read_parameters
from .schema import ChatBody, ChatCompletionBody, Column, ListBody, Message, PromptsBody, TableBody, validate

Form = Literal["prompts", "list", "table", "chat", "chat_completion"]

ACCEPTED = (
    'accepted are {"input_data": {"input_string": [...], "images": [...], "parameters": {...}}}, '
    '{"input_data": ["...", ...], "params": {...}}, '
    '{"input_data": {"columns": [...], "data": [[...]]}, "params": {...}}, '
    '{"input_data": {"input_string": [{"role": "user", "content": "..."}], "parameters": {...}}} '
    'and OpenAI chat completions {"messages": [...]}'
)


@dataclass(frozen=True)
class ScoreRequest:
    """A request whose shape is right: one Prompt a row, and how to continue them.

    `echo` says for each row whether its prompt comes back with the answer.
    """

    form: Form
    prompts: tuple[Prompt, ...]
    given: GivenParameters
    echo: tuple[bool, ...]
    model: str = ""
    logprobs: int | None = None
    include_usage: bool = False

    @property
    def parameters(self) -> Parameters:
        return self.given.values


def parse(body: bytes, conversation: Template, streaming: bool = False) -> ScoreRequest:
    """The request of a body, for a model of that conversation; `streaming` where the request's headers ask for it.

    Raises BadRequest that says what is wrong, where, and what is accepted.
    """
    content = _json(body)
    if not isinstance(content, dict):
        raise BadRequest("invalid_request", f"the body must be a JSON object; {ACCEPTED}")
    if "messages" in content:
        return _parse_chat_completion(content, conversation, streaming)
    name = next((name for name in ("input_data", "inputs") if name in content), None)
    if name is None:
        raise BadRequest("invalid_request", f"the body has neither input_data nor inputs nor messages; {ACCEPTED}")
    data = content[name]
    beside = {key: value for key, value in content.items() if key != name}
    if isinstance(data, list):
        return _parse_list(data, name, _parameters(beside, {}, name).under(conversation))
    if not isinstance(data, dict):
        raise BadRequest("invalid_request", f"{name} must be an object or a list of strings; {ACCEPTED}", name)
    inside = {key: data[key] for key in ("parameters", "params") if key in data}
    data = {key: value for key, value in data.items() if key not in inside}
    given = _parameters(beside, inside, name).under(conversation)
    if "columns" in data or "data" in data:
        return _parse_table(data, name, given)
    texts = data.get("input_string")
    if isinstance(texts, list) and any(isinstance(text, dict) for text in texts):
        return _parse_chat(data, name, given)
    return _parse_prompts(data, name, given)


def _json(body: bytes) -> Any:
    try:
        # With the mark at its beginning that Windows' editors and shells write.
        return pydantic_core.from_json(body.removeprefix(codecs.BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest("invalid_json", f"the body is not valid JSON: {error}") from None


def _parse_prompts(data: dict[str, Any], name: str, given: GivenParameters) -> ScoreRequest:
    shape = validate(PromptsBody, data, name)
    texts = shape.input_string
    images = shape.images if shape.images is not None else [None] * len(texts)
    if len(images) != len(texts):
        raise BadRequest(
            "image_count_mismatch",
            f"{name}.images has {len(images)} entries for {len(texts)} strings; send one per string, null for none",
            f"{name}.images",
        )
    rows = [
        TextRow(text, _sources(entry, f"{name}.images[{i}]"), f"{name}.input_string[{i}]")
        for i, (text, entry) in enumerate(zip(texts, images, strict=True))
    ]
    return _text_request("prompts", rows, given)


def _parse_list(data: list[Any], name: str, given: GivenParameters) -> ScoreRequest:
    texts = validate(ListBody, {"input_data": data}, "", {"input_data": name}).input_data
    _refuse_several(given, "a plain list has room for one answer per string")
    return _text_request("list", [TextRow(text, (), f"{name}[{i}]") for i, text in enumerate(texts)], given)


def _parse_table(data: dict[str, Any], name: str, given: GivenParameters) -> ScoreRequest:
    table = validate(TableBody, data, name)
    _refuse_several(given, "a table has room for one response per row")
    if len(set(table.columns)) < len(table.columns):
        raise BadRequest("invalid_request", "a column is named twice", f"{name}.columns")
    if table.index is not None and len(table.index) != len(table.data):
        raise BadRequest(
            "invalid_request", f"the index has {len(table.index)} entries for {len(table.data)} rows", f"{name}.index"
        )
    prompts = tuple(
        _table_prompt(cells, table.columns, f"{name}.data[{i}]", given) for i, cells in enumerate(table.data)
    )
    return ScoreRequest("table", prompts, given, (given.values.return_full_text is True,) * len(prompts))


def _table_prompt(cells: list[str | None], columns: list[Column], path: str, given: GivenParameters) -> Prompt:
    if len(cells) != len(columns):
        raise BadRequest("invalid_request", f"the row has {len(cells)} cells for {len(columns)} columns", path)
    row = dict(zip(columns, cells, strict=True))
    texts = [column for column in get_args(Column)[1:] if row.get(column)]
    if len(texts) != 1:
        raise BadRequest(
            "invalid_request", "a row needs text in exactly one of the columns prompt, direct_question and text", path
        )
    column = texts[0]
    image = row.get("image")
    images = (ImageSource(image, f"{path}[{columns.index('image')}]"),) if image is not None else ()
    text_row = TextRow(row[column] or "", images, f"{path}[{columns.index(column)}]")
    if given.wraps or (column != "prompt" and given.values.template is None):
        return question(text_row, given.conversation)
    # Only the one column is known to hold a conversation; the others' text, unwrapped, may be anything.
    return dialogue(text_row) if column == "prompt" else raw(text_row)


def _parse_chat(data: dict[str, Any], name: str, given: GivenParameters) -> ScoreRequest:
    shape = validate(ChatBody, data, name)
    _refuse_several(given, "a chat answer has room for one output")
    prompt = _chat_prompt(shape.input_string, f"{name}.input_string", given)
    return ScoreRequest("chat", (prompt,), given, (given.values.return_full_text is True,))


def _parse_chat_completion(content: dict[str, Any], conversation: Template, streaming: bool) -> ScoreRequest:
    own = {key: content[key] for key in ChatCompletionBody.model_fields if content.get(key) is not None}
    others = {key: value for key, value in content.items() if key not in ChatCompletionBody.model_fields}
    given = read_parameters(others, "", CHAT_COMPLETION_ALIASES, ChatCompletionBody.model_fields)
    given = given.under(conversation)
    shape = validate(ChatCompletionBody, own, "")
    if given.values.return_full_text:
        raise BadRequest("invalid_parameter", "a chat completion has no room for the prompt", "return_full_text")
    if shape.stream_options is not None and not (streaming or given.values.stream):
        raise BadRequest("invalid_parameter", "stream_options needs stream: true", "stream_options")
    if shape.top_logprobs is not None and not shape.logprobs:
        raise BadRequest("invalid_parameter", "top_logprobs needs logprobs: true", "top_logprobs")
    prompt = _chat_prompt(shape.messages, "messages", given)
    logprobs = (shape.top_logprobs or 0) if shape.logprobs else None
    include_usage = shape.stream_options is not None and shape.stream_options.include_usage
    return ScoreRequest("chat_completion", (prompt,), given, (False,), shape.model, logprobs, include_usage)


def _text_request(form: Form, rows: list[TextRow], given: GivenParameters) -> ScoreRequest:
    prompts = tuple(_text_prompt(row, given) for row in rows)
    full = given.values.return_full_text
    echo = tuple(not prompt.is_question if full is None else full for prompt in prompts)
    return ScoreRequest(form, prompts, given, echo)


def _text_prompt(row: TextRow, given: GivenParameters) -> Prompt:
    """An image without a place in the text makes it a question; a string alone is a raw prompt."""
    is_question = given.values.template is None and row.images and IMAGE_PLACEHOLDER not in row.text
    if given.wraps or is_question:
        return question(row, given.conversation)
    return raw(row)


def _chat_prompt(messages: list[Message], path: str, given: GivenParameters) -> Prompt:
    if given.values.template == "none":
        raise BadRequest(
            "invalid_parameter",
            'a chat is always put into the template; leave out "template"',
            given.path("template"),
        )
    turns = []
    for i, message in enumerate(messages):
        if message.role == "system" and i > 0:
            raise BadRequest("invalid_request", "a system message must come first", f"{path}[{i}]")
        turns.append(_turn(message, f"{path}[{i}]"))
    if turns[-1].role != "user":
        raise BadRequest("invalid_request", "the last message must be the user's", f"{path}[{len(turns) - 1}]")
    return chat(ChatRow(tuple(turns), path), given.conversation)


def _turn(message: Message, path: str) -> Turn:
    if isinstance(message.content, str):
        return Turn(message.role, message.content)
    texts, images = [], []
    for i, part in enumerate(message.content):
        where = f"{path}.content[{i}]"
        if (part.text is None) == (part.type == "text") or (part.image_url is None) == (part.type == "image_url"):
            raise BadRequest("invalid_request", f"a part of type {part.type} has {part.type} and nothing else", where)
        if part.text is not None:
            texts.append(part.text)
        elif part.image_url is not None:
            images.append(ImageSource(part.image_url.url, f"{where}.image_url.url"))
    if images and message.role != "user":
        raise BadRequest("invalid_request", "images are accepted in user messages alone", images[0].param)
    return Turn(message.role, "\n".join(texts), tuple(images))


def _sources(entry: str | list[str] | None, path: str) -> tuple[ImageSource, ...]:
    if entry is None:
        return ()
    if isinstance(entry, str):
        return (ImageSource(entry, path),)
    return tuple(ImageSource(data, f"{path}[{i}]") for i, data in enumerate(entry))


def _parameters(beside: dict[str, Any], inside: dict[str, Any], name: str) -> GivenParameters:
    """The parameters from `input_data` or from beside it, never from both."""
    unknown = [key for key in beside if key not in ("parameters", "params")]
    if unknown:
        raise BadRequest(
            "invalid_request",
            f"{unknown[0]!r} is not accepted beside {name}; accepted are parameters and params",
            unknown[0],
        )
    places = {f"{name}.{key}": value for key, value in inside.items()} | beside
    places = {path: value for path, value in places.items() if value is not None}
    if len(places) > 1:
        raise BadRequest("invalid_request", f"parameters are given twice: {' and '.join(places)}", [*places][-1])
    if not places:
        return GivenParameters(Parameters())
    ((path, parameters),) = places.items()
    if not isinstance(parameters, dict):
        raise BadRequest("invalid_request", "parameters must be an object", path)
    return read_parameters(parameters, path)


def _refuse_several(given: GivenParameters, why: str) -> None:
    n = given.values.n
    if n > 1:
        raise BadRequest(
            "invalid_parameter", f"n is {n}, and {why}; send prompts or a chat completion", given.path("n")
        )
