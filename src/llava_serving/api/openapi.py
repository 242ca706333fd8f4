"""The schemas of requests in swagger3.json, the service's OpenAPI description, from the models that validate requests.

Azure's server serves swagger3.json from score.py's folder at `/swagger.json?version=3`; Azure's portal and client
generators read it there. OpenAPI 3.0 is the newest version that the server supports. pydantic, and FastAPI from 0.99,
write only the schemas of OpenAPI 3.1. These 139 lines convert them, and write 2,220 of the file's 3,000 lines. The
other lines are written by hand. `python -m llava_serving.api.openapi swagger3.json` updates the file.
"""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .openai_fields import IGNORED, NEUTRAL_MESSAGE_VALUES, NEUTRAL_VALUES
from .parameters import ALIASES, OPENAI_ALIASES, PARAMETER_KEYS, Parameters
from .schema import ChatBody, ChatCompletionBody, CompletionBody, ListBody, PromptsBody, TableBody

Schema = dict[str, Any]
MODELS: list[type[BaseModel]] = [
    PromptsBody, ListBody, TableBody, ChatBody, ChatCompletionBody, CompletionBody, Parameters,
]  # fmt: skip
COMPONENTS = "#/components/schemas/"
NULL: Schema = {"type": "object", "nullable": True, "enum": [None]}


def updated(document: Schema) -> Schema:
    """Returns an OpenAPI document with the package's version and with the schemas of requests."""
    info = document["info"] | {"version": version("llava-serving")}
    components = document["components"]
    components = components | {"schemas": components["schemas"] | request_schemas()}
    return document | {"info": info, "components": components}


def request_schemas() -> dict[str, Schema]:
    """Returns the schema of each form of request and of the parts that they refer to, by name."""
    _, generated = models_json_schema([(model, "validation") for model in MODELS], ref_template=COMPONENTS + "{model}")
    schemas: dict[str, Schema] = {name: _to_openapi_3_0(schema) for name, schema in generated["$defs"].items()}
    prompts, texts, table, chat, chat_completion, completion, parameters = (
        schemas.pop(model.__name__) for model in MODELS
    )
    parts = {name: _with_nullable_fields(schema) for name, schema in schemas.items()}
    parts["Message"]["properties"] |= _neutral_fields(NEUTRAL_MESSAGE_VALUES)
    parts["StreamOptions"]["additionalProperties"] = True
    return parts | {
        "Parameters": _closed(_nullable_values(_with_aliases(parameters["properties"], ALIASES))),
        "PromptsRequest": _request_with_parameters(prompts),
        "ListRequest": _request({"anyOf": [texts["properties"]["input_data"], {"type": "string"}]}),
        "TableRequest": _request_with_parameters(table),
        "ChatRequest": _request_with_parameters(chat),
        "ChatCompletionRequest": _openai_request(chat_completion, parameters["properties"]),
        "CompletionRequest": _openai_request(completion, parameters["properties"]),
    }


def _openai_request(body: Schema, parameters: dict[str, Schema]) -> Schema:
    fields = _with_nullable_fields(body)["properties"]
    optional = _nullable_values(_with_aliases(parameters, OPENAI_ALIASES)) | _neutral_fields(NEUTRAL_VALUES)
    ignored: dict[str, Schema] = {name: _nullable({"description": "has no effect"}) for name in IGNORED}
    return _closed(optional | ignored | fields) | {"required": body["required"]}


def _neutral_fields(neutral: Mapping[str, tuple[Any, ...]]) -> dict[str, Schema]:
    """Returns the fields that are accepted only with a value that has no effect."""
    return {name: _nullable({"enum": list(values)}) if values else NULL for name, values in neutral.items()}


def _with_nullable_fields(schema: Schema) -> Schema:
    """Allows null for every optional field of an object."""
    required = schema.get("required", [])
    properties = {name: s if name in required else _nullable(s) for name, s in schema["properties"].items()}
    return schema | {"properties": properties, "additionalProperties": NULL}


def _request_with_parameters(data: Schema) -> Schema:
    """Returns the body of a form whose data may hold the parameters."""
    return _request(_closed(data["properties"] | _parameter_fields()) | {"required": data["required"]})


def _request(data: Schema) -> Schema:
    keys = [{"required": ["input_data"]}, {"required": ["inputs"]}]
    return _closed({"input_data": data, "inputs": data} | _parameter_fields()) | {"oneOf": keys}


def _parameter_fields() -> dict[str, Schema]:
    return dict.fromkeys(PARAMETER_KEYS, _nullable({"$ref": COMPONENTS + "Parameters"}))


def _with_aliases(parameters: dict[str, Schema], aliases: Mapping[str, str]) -> dict[str, Schema]:
    return parameters | {
        alias: parameters[name] | {"description": f"another name of {name}"} for alias, name in aliases.items()
    }


def _closed(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": NULL}


def _to_openapi_3_0(schema: Any) -> Any:
    """Converts a schema from JSON Schema 2020-12, which pydantic writes, to the dialect of OpenAPI 3.0."""
    if isinstance(schema, list):
        return [_to_openapi_3_0(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A title that is not a string is a field with the name "title".
    result = {k: _to_openapi_3_0(value) for k, value in schema.items() if k != "title" or not isinstance(value, str)}
    if "const" in result:
        result["enum"] = [result.pop("const")]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in result:
            result[bound], result[exclusive] = result[exclusive], True
    members = result.get("anyOf", [])
    if {"type": "null"} in members:
        others = [member for member in members if member != {"type": "null"}]
        del result["anyOf"]
        result |= _nullable(others[0] if len(others) == 1 else {"anyOf": others})
    return result


def _nullable_values(schemas: dict[str, Schema]) -> dict[str, Schema]:
    return {name: _nullable(schema) for name, schema in schemas.items()}


def _nullable(schema: Schema) -> Schema:
    """Allows null. OpenAPI 3.0 has null only as a property of a type, and an enumeration must list it."""
    if schema.get("nullable"):
        return schema
    if "type" not in schema:
        return {"anyOf": [*schema.get("anyOf", [schema]), NULL]}
    return schema | {"nullable": True} | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(json.dumps(updated(json.loads(file.read_text("utf-8"))), indent=2) + "\n", "utf-8")
