"""Parses the body of a request into a ScoreRequest. On /score, the shape of the body tells its form.

Azure's forms are parsed here, OpenAI's in openai_parser.py. Errors about the bytes of an image come from
inputs/image.py, later.
"""

import codecs
import contextlib
import json
from dataclasses import replace
from typing import Any, get_args

import pydantic_core

from ..errors import BadRequest
from ..inputs.prompt import (
    IMAGE_PLACEHOLDER,
    ConversationTemplate,
    ImageSource,
    Prompt,
    TextInput,
    formatted_prompt,
    question_prompt,
    raw_prompt,
)
from .chat_messages import build_chat_prompt, drop_neutral_fields
from .openai_parser import OpenAIParser
from .parameters import PARAMETER_KEYS, ParsedParameters, check_template, find_parameters
from .paths import CHAT_COMPLETIONS, COMPLETIONS, SCORE
from .schema import ChatBody, Column, ListBody, PromptsBody, TableBody, validate
from .score_request import Form, ScoreRequest

DATA_KEYS = ("input_data", "inputs")
GZIP_MAGIC = b"\x1f\x8b"
MAX_QUOTED = 64  # characters of a key in a message
TEXT_COLUMNS = [column for column in get_args(Column) if column not in ("image", "input_string")]
ACCEPTED = (
    'accepted are {"input_data": {"input_string": [...], "images": [...], "parameters": {...}}}, '
    '{"input_data": ["...", ...], "params": {...}}, '
    '{"input_data": {"columns": [...], "data": [[...]]}, "params": {...}}, '
    '{"input_data": {"input_string": [{"role": "user", "content": "..."}], "parameters": {...}}} '
    'and OpenAI chat completions {"messages": [...]}'
)


class RequestParser:
    """Parses requests for a model with the given conversation template.

    In all methods, `key` is "input_data" or "inputs", whichever the body has.
    """

    def __init__(self, template: ConversationTemplate) -> None:
        self._template = template
        self._openai = OpenAIParser(template)

    def parse(self, body: bytes, accepts_stream: bool = False, path: str = SCORE) -> ScoreRequest:
        """Returns the request in a body that is sent to `path`.

        `accepts_stream` says that the request's headers ask for a stream. Raises BadRequest, which says what is wrong,
        where, and what is accepted.
        """
        content = _parse_json(body)
        if not isinstance(content, dict):
            raise BadRequest("invalid_request", f"the body must be a JSON object; {ACCEPTED}")
        request = self._parse_form(content, accepts_stream, path)
        return replace(request, stream=accepts_stream or request.parameters.stream)

    def _parse_form(self, content: dict[str, Any], accepts_stream: bool, path: str) -> ScoreRequest:
        if path in COMPLETIONS:
            return self._openai.parse_completion(content, accepts_stream)
        if path in CHAT_COMPLETIONS or content.get("messages") is not None:
            return self._openai.parse_chat_completion(content, accepts_stream)
        return self._parse_azure_form({name: value for name, value in content.items() if value is not None})

    def _parse_azure_form(self, content: dict[str, Any]) -> ScoreRequest:
        key = next((key for key in DATA_KEYS if key in content), None)
        if key is None:
            raise BadRequest("invalid_request", f"the body has neither input_data nor inputs nor messages; {ACCEPTED}")
        data = content.pop(key)
        if isinstance(data, str):
            data = [data]
        if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
            message = f'a list of messages belongs in {{"{key}": {{"input_string": [...]}}}}, or in messages'
            raise BadRequest("invalid_request", message, key)
        if isinstance(data, list):
            return self._parse_list(data, key, self._find_parameters(content, {}, key))
        if not isinstance(data, dict):
            raise BadRequest("invalid_request", f"{key} must be an object or a list of strings; {ACCEPTED}", key)
        inner = {name: data.pop(name) for name in PARAMETER_KEYS if name in data}
        return self._parse_object(data, key, self._find_parameters(content, inner, key))

    def _find_parameters(self, outer: dict[str, Any], inner: dict[str, Any], key: str) -> ParsedParameters:
        parameters = find_parameters(outer, inner, key)
        check_template(parameters, self._template)
        return parameters

    def _parse_object(self, data: dict[str, Any], key: str, parameters: ParsedParameters) -> ScoreRequest:
        if "columns" in data or "data" in data:
            return self._parse_table(data, key, parameters)
        texts = data.get("input_string")
        if isinstance(texts, list) and any(isinstance(text, dict) for text in texts):
            return self._parse_chat(data, key, parameters)
        return self._parse_prompts(data, key, parameters)

    def _parse_prompts(self, data: dict[str, Any], key: str, parameters: ParsedParameters) -> ScoreRequest:
        body = validate(PromptsBody, data, key)
        texts = body.input_string
        images = body.images if body.images is not None else [None] * len(texts)
        if len(images) != len(texts):
            raise BadRequest(
                "image_count_mismatch",
                f"{key}.images has {len(images)} entries for {len(texts)} strings; send one per string, null for none",
                f"{key}.images",
            )
        sources = [
            TextInput(text, _image_sources(entry, f"{key}.images[{i}]"), f"{key}.input_string[{i}]")
            for i, (text, entry) in enumerate(zip(texts, images, strict=True))
        ]
        return self._text_request("prompts", sources, parameters)

    def _parse_list(self, data: list[Any], key: str, parameters: ParsedParameters) -> ScoreRequest:
        texts = validate(ListBody, {"input_data": data}, "", {"input_data": key}).input_data
        _check_single_sequence(parameters, "a plain list has room for one answer per string")
        sources = [TextInput(text, (), f"{key}[{i}]") for i, text in enumerate(texts)]
        return self._text_request("list", sources, parameters)

    def _text_request(self, form: Form, sources: list[TextInput], parameters: ParsedParameters) -> ScoreRequest:
        prompts = tuple(self._text_prompt(source, parameters) for source in sources)
        full_text = parameters.values.return_full_text
        echo = tuple(not prompt.in_template if full_text is None else full_text for prompt in prompts)
        return ScoreRequest(form, prompts, parameters.values, parameters.paths, echo)

    def _text_prompt(self, source: TextInput, parameters: ParsedParameters) -> Prompt:
        """Puts a text into the template if the request asks for it, or if the text does not place its images."""
        unplaced_images = bool(source.images) and IMAGE_PLACEHOLDER not in source.text
        if self._template_requested(parameters) or (parameters.values.template is None and unplaced_images):
            return question_prompt(source, self._template)
        return raw_prompt(source)

    def _parse_table(self, data: dict[str, Any], key: str, parameters: ParsedParameters) -> ScoreRequest:
        table = validate(TableBody, data, key)
        if len(set(table.columns)) < len(table.columns):
            raise BadRequest("invalid_request", "a column is named twice", f"{key}.columns")
        if table.index is not None and len(table.index) != len(table.data):
            raise BadRequest(
                "invalid_request",
                f"the index has {len(table.index)} entries for {len(table.data)} rows",
                f"{key}.index",
            )
        if "input_string" in table.columns:
            return self._parse_raw_table(table, key, parameters)
        _check_single_sequence(parameters, "a table has room for one response per row")
        prompts = tuple(
            self._table_prompt(cells, table.columns, f"{key}.data[{i}]", parameters)
            for i, cells in enumerate(table.data)
        )
        return ScoreRequest(
            "table", prompts, parameters.values, parameters.paths, (_full_text(parameters),) * len(prompts)
        )

    def _parse_raw_table(self, table: TableBody, key: str, parameters: ParsedParameters) -> ScoreRequest:
        """Parses a table of raw prompts, whose answer has the form of prompts."""
        if table.columns != ["input_string"]:
            message = "a table with the column input_string must have no other column"
            raise BadRequest("invalid_request", message, f"{key}.columns")
        sources = []
        for i, cells in enumerate(table.data):
            path = f"{key}.data[{i}]"
            if len(cells) != 1 or cells[0] is None:
                raise BadRequest("invalid_request", "the row must have one cell with text", path)
            sources.append(TextInput(cells[0], (), f"{path}[0]"))
        return self._text_request("prompts", sources, parameters)

    def _table_prompt(
        self, cells: list[str | None], columns: list[Column], path: str, parameters: ParsedParameters
    ) -> Prompt:
        column, source = _table_text(cells, columns, path)
        if self._template_requested(parameters) or (column != "prompt" and parameters.values.template is None):
            return question_prompt(source, self._template)
        # The prompt column holds conversations. The text of other columns may be anything.
        return formatted_prompt(source, self._template) if column == "prompt" else raw_prompt(source)

    def _parse_chat(self, data: dict[str, Any], key: str, parameters: ParsedParameters) -> ScoreRequest:
        path = f"{key}.input_string"
        messages = drop_neutral_fields(data["input_string"], path)
        body = validate(ChatBody, {**data, "input_string": messages}, key)
        _check_single_sequence(parameters, "a chat answer has room for one output")
        prompt = build_chat_prompt(body.input_string, path, self._template, parameters)
        return ScoreRequest("chat", (prompt,), parameters.values, parameters.paths, (_full_text(parameters),))

    def _template_requested(self, parameters: ParsedParameters) -> bool:
        return parameters.values.template == self._template.name


def _parse_json(body: bytes) -> Any:
    if not body.strip():
        raise BadRequest("invalid_json", "the body is empty: not valid JSON")
    if body.startswith(GZIP_MAGIC):
        raise BadRequest("invalid_json", "the body is compressed with gzip, which is not accepted: send plain JSON")
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        raise BadRequest("invalid_json", "the body is in UTF-16 or UTF-32: send JSON in UTF-8")
    # Windows' editors and shells begin a file with a byte order mark.
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest("invalid_json", f"the body is not valid JSON: {error}") from None
    _check_keys(body)
    return content


def _check_keys(body: bytes) -> None:
    """Raises BadRequest if an object has a key twice. Parsers differ in which value counts (RFC 8259, section 4)."""
    with contextlib.suppress(ValueError, RecursionError):  # what is JSON is decided already
        json.loads(body, object_pairs_hook=_unique_pairs)


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise BadRequest("invalid_json", f"an object has the key {name[:MAX_QUOTED]!r} twice; send it once", None)
    return content


def _image_sources(entry: str | list[str] | None, path: str) -> tuple[ImageSource, ...]:
    if entry is None:
        return ()
    if isinstance(entry, str):
        return (ImageSource(entry, path),)
    return tuple(ImageSource(data, f"{path}[{i}]") for i, data in enumerate(entry))


def _table_text(cells: list[str | None], columns: list[Column], path: str) -> tuple[str, TextInput]:
    """Returns the text of the row at `path`, with its image, and the name of the text's column."""
    if len(cells) != len(columns):
        raise BadRequest("invalid_request", f"the row has {len(cells)} cells for {len(columns)} columns", path)
    row = dict(zip(columns, cells, strict=True))
    texts = {column: text for column in TEXT_COLUMNS if (text := row.get(column))}
    if len(texts) != 1:
        raise BadRequest(
            "invalid_request", "a row needs text in exactly one of the columns prompt, direct_question and text", path
        )
    ((column, text),) = texts.items()
    image = row.get("image")
    images = (ImageSource(image, f"{path}[{columns.index('image')}]"),) if image is not None else ()
    return column, TextInput(text, images, f"{path}[{columns.index(column)}]")


def _full_text(parameters: ParsedParameters) -> bool:
    return parameters.values.return_full_text is True


def _check_single_sequence(parameters: ParsedParameters, reason: str) -> None:
    n = parameters.values.n
    if n > 1:
        raise BadRequest(
            "invalid_parameter", f"n is {n}, and {reason}; send prompts or a chat completion", parameters.path("n")
        )
