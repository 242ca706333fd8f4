"""The service's OpenAPI description, made from the models that requests are checked with.

`python -m llava_serving.api.openapi` prints it. Azure's server serves the file swagger3.json beside score.py, at
`/swagger.json?version=3`; portal and client generators read it there. It is OpenAPI 3.0, the newest that the server
has a version for.
"""

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .parameters import ALIASES, CHAT_COMPLETION_ALIASES, Parameters
from .schema import ChatBody, ChatCompletionBody, ListBody, PromptsBody, TableBody

Schema = dict[str, Any]
COMPONENTS = "#/components/schemas/"
TEXT: Schema = {"type": "string"}
NULL: Schema = {"type": "object", "nullable": True, "enum": [None]}
ERRORS = {
    400: "malformed JSON, wrong form, unknown or out-of-range parameter, undecodable image",
    408: "the body did not come",
    413: "body or image over the limit",
    415: "not JSON in UTF-8",
    422: "prompt, images and max_new_tokens do not fit the context",
    429: "as many sequences as are let in are running and waiting",
    500: "the service failed; its log says why",
    503: "this instance is being shut down or has failed",
    504: "nothing was generated in the time there was",
}


def document() -> Schema:
    """The whole description, a JSON object."""
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "LLaVA on Azure ML",
            "version": version("llava-serving"),
            "description": "Answers about text and pictures. The form of the body decides the form of the answer.",
        },
        "security": [{"key": []}],
        "paths": {"/": {"get": _health()}, "/score": {"post": _score()}},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "key or Entra token"}},
            "schemas": _components(),
        },
    }


def _health() -> Schema:
    healthy = {"description": "the model is loaded", "content": {"text/html": {"schema": TEXT}}}
    return {"operationId": "health", "security": [], "responses": {"200": healthy}}


def _score() -> Schema:
    bodies = ["Prompts", "List", "Table", "Chat", "ChatCompletion"]
    refused = {"application/json": {"schema": _ref("Error")}}
    answered = {
        "application/json": {"schema": {"anyOf": [_ref(f"{body}Answer") for body in bodies]}},
        "text/event-stream": {"schema": TEXT},
    }
    return {
        "operationId": "score",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"anyOf": [_ref(f"{body}Request") for body in bodies]}}},
        },
        "responses": {
            "200": {"description": "the answer; with stream: true its events", "content": answered},
            **{str(status): {"description": why, "content": refused} for status, why in ERRORS.items()},
        },
    }


def _components() -> dict[str, Schema]:
    shapes: list[type[BaseModel]] = [PromptsBody, ListBody, TableBody, ChatBody, ChatCompletionBody, Parameters]
    _, made = models_json_schema([(shape, "validation") for shape in shapes], ref_template=COMPONENTS + "{model}")
    parts: dict[str, Schema] = {name: _as_3_0(schema) for name, schema in made["$defs"].items()}
    parameters = parts.pop("Parameters")["properties"]
    asked = {shape.__name__: parts.pop(shape.__name__) for shape in shapes[:-1]}
    texts = {"type": "array", "items": TEXT}
    of_sequences = {"type": "object", "description": "by the sequence's number", "additionalProperties": TEXT}
    return parts | {
        "Parameters": _closed(_with_aliases(parameters, ALIASES)),
        "PromptsRequest": _wrapped(asked["PromptsBody"]),
        "PromptsAnswer": {"type": "array", "items": of_sequences},
        "ListRequest": _beside(asked["ListBody"]["properties"]["input_data"]),
        "ListAnswer": texts,
        "TableRequest": _wrapped(asked["TableBody"]),
        "TableAnswer": {"type": "array", "items": _closed({"response": TEXT}, ["response"])},
        "ChatRequest": _wrapped(asked["ChatBody"]),
        "ChatAnswer": _closed({"output": TEXT}, ["output"]),
        "ChatCompletionRequest": _closed(
            _with_aliases(parameters, CHAT_COMPLETION_ALIASES) | _optional(asked["ChatCompletionBody"]),
            ["messages"],
        ),
        "ChatCompletionAnswer": {"type": "object", "required": ["choices"], "description": "as OpenAI's"},
        "Error": _closed({"error": _error()}, ["error"]),
    }


def _error() -> Schema:
    return _closed(
        {
            "code": TEXT | {"description": "for programs"},
            "message": TEXT | {"description": "for people"},
            "param": TEXT | {"nullable": True, "description": "the path of what is wrong in the request"},
        },
        ["code", "message", "param"],
    )


def _wrapped(body: Schema) -> Schema:
    """The body inside input_data, its parameters in there or beside it."""
    return _beside(_closed(body["properties"] | _places(), body["required"]))


def _beside(data: Schema) -> Schema:
    either = [{"required": ["input_data"]}, {"required": ["inputs"]}]
    return _closed({"input_data": data, "inputs": data, **_places()}) | {"oneOf": either}


def _places() -> dict[str, Schema]:
    parameters = _or_null(_ref("Parameters"))
    return {"parameters": parameters, "params": parameters}


def _with_aliases(parameters: Mapping[str, Schema], aliases: Mapping[str, str]) -> dict[str, Schema]:
    """Null is a parameter left out."""
    named = dict(parameters)
    named |= {alias: parameters[name] | {"description": f"another name of {name}"} for alias, name in aliases.items()}
    return {name: _or_null(schema) for name, schema in named.items()}


def _optional(body: Schema) -> dict[str, Schema]:
    """The properties, those that may be left out null as well."""
    properties: dict[str, Schema] = body["properties"]
    return {name: schema if name in body["required"] else _or_null(schema) for name, schema in properties.items()}


def _closed(properties: Mapping[str, Schema], required: list[str] | None = None) -> Schema:
    closed: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return closed | ({"required": required} if required else {})


def _ref(name: str) -> Schema:
    return {"$ref": COMPONENTS + name}


def _as_3_0(schema: Any) -> Any:
    """A schema of JSON Schema 2020-12, which pydantic writes, in the dialect of OpenAPI 3.0."""
    if isinstance(schema, list):
        return [_as_3_0(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _as_3_0(value) for key, value in schema.items() if key != "title" or not isinstance(value, str)}
    if "const" in made:
        made["enum"] = [made.pop("const")]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in made:
            made[bound], made[exclusive] = made[exclusive], True
    options = made.get("anyOf", [])
    if {"type": "null"} in options:
        others = [option for option in options if option != {"type": "null"}]
        del made["anyOf"]
        made |= _or_null(others[0] if len(others) == 1 else {"anyOf": others})
    return made


def _or_null(schema: Schema) -> Schema:
    """3.0 knows null as a property of a type alone, and not beside an enumeration that lacks it."""
    if schema.get("nullable"):
        return schema
    if "type" not in schema:
        return {"anyOf": [*schema.get("anyOf", [schema]), NULL]}
    return schema | {"nullable": True} | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})


if __name__ == "__main__":
    print(json.dumps(document(), indent=2))
