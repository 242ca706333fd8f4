"""The generation parameters of a request: names, aliases, ranges, where a request holds them, and SamplingParams."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from ..engine.prompt import SamplingParams
from ..errors import BadRequest
from ..inputs.prompt import ConversationTemplate
from .schema import StrictModel, accepted_names, as_list, validate

ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "num_return_sequences": "n",
}
# OpenAI's name, and the one that load generators for OpenAI's API send.
OPENAI_ALIASES = ALIASES | {"max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
PARAMETER_KEYS = ("parameters", "params")
MAX_STOP_STRINGS = 16
MAX_COUNT = 2**31 - 1
# Below this the authors' worker was greedy (LLaVA@ff9b89f llava/serve/model_worker.py), and logits soon overflow.
MIN_TEMPERATURE = 1e-4

StopString = Annotated[str, Field(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]


class Parameters(StrictModel):
    """The parameters of a request. The service applies each one or refuses the request; None means not set."""

    model_config = ConfigDict(frozen=True)

    max_new_tokens: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    min_new_tokens: int = Field(default=0, ge=0, le=MAX_COUNT)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1, le=MAX_COUNT)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100, allow_inf_nan=False)
    stop: Annotated[list[StopString], BeforeValidator(as_list, json_schema_input_type=StopString | StopStrings)] = (
        Field(default=[], max_length=MAX_STOP_STRINGS)
    )
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int = Field(default=1, ge=1, le=MAX_COUNT)
    return_full_text: bool | None = None
    template: Literal["v0", "v1", "simple", "chat", "none"] | None = None
    stream: bool = False
    ignore_eos: bool = False

    def sampling_params(self, max_new_tokens: int, separator: str | None, logprobs: int | None) -> SamplingParams:
        """Returns the engine's parameters.

        `max_new_tokens` is the number that fits the context. `separator` is the template's, for prompts in it.
        """
        separators = (separator,) if separator is not None and not self.ignore_eos else ()
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self._effective_temperature(),
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            repetition_penalty=self.repetition_penalty,
            stop=(*self.stop, *separators),
            seed=self.seed,
            n=self.n,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )

    def _effective_temperature(self) -> float:
        """Returns the engine's temperature, 0 for greedy. Without `do_sample`, a temperature above 0 means sampling."""
        if self.do_sample is False or (self.do_sample is None and not self.temperature):
            return 0.0
        temperature = 1.0 if self.temperature is None else self.temperature
        return temperature if temperature >= MIN_TEMPERATURE else 0.0


@dataclass(frozen=True)
class ParsedParameters:
    """Parameters, and the path in the request of each one that the request sets."""

    values: Parameters
    paths: Mapping[str, str] = field(default_factory=dict, compare=False)

    def path(self, name: str) -> str:
        """Returns the path of a parameter as the client wrote it, alias included, for errors about it."""
        return self.paths.get(name, name)


def parse_parameters(
    parameters: Mapping[str, Any],
    path: str,
    aliases: Mapping[str, str] = ALIASES,
    other_fields: Iterable[str] = (),
    hidden_fields: Iterable[str] = (),
) -> ParsedParameters:
    """Returns the parameters of the object at `path`. A parameter that is null is not set.

    `other_fields` are the fields that the same object may have besides parameters. `hidden_fields` are suggested for a
    misspelt name, but not listed. Raises BadRequest, with the list of accepted names if a name is unknown.
    """
    known = {*Parameters.model_fields, *aliases}
    values: dict[str, Any] = {}
    sent_names: dict[str, str] = {}
    for name, value in parameters.items():
        param = _join(path, name)
        if value is None:
            continue
        if name in ("logprobs", "top_logprobs"):
            raise BadRequest("unsupported_parameter", "only OpenAI's forms return logprobs", param)
        if name not in known:
            suggestion = accepted_names(name, {*known, *other_fields}, hidden_fields)
            raise BadRequest("unknown_parameter", f"{name!r} is not a parameter; {suggestion}", param)
        field_name = aliases.get(name, name)
        if field_name in values:
            message = f"{name!r} means the same as {sent_names[field_name]!r}, which is also set; send one of them"
            raise BadRequest("invalid_parameter", message, param)
        values[field_name], sent_names[field_name] = value, name
    validated = validate(Parameters, values, path, sent_names, code="invalid_parameter")
    return ParsedParameters(validated, {field: _join(path, name) for field, name in sent_names.items()})


def check_template(parameters: ParsedParameters, template: ConversationTemplate) -> None:
    """Raises BadRequest if the request asks for a template other than the model's."""
    if parameters.values.template not in (None, "none", template.name):
        raise BadRequest(
            "invalid_parameter",
            f"this model's template is {template.name}; accepted are {template.name} and none",
            parameters.path("template"),
        )


def find_parameters(outer: Mapping[str, Any], inner: Mapping[str, Any], key: str) -> ParsedParameters:
    """Returns the parameters of a body whose data is at `key`: inside the data (`inner`) or next to it (`outer`).

    Raises BadRequest if both have parameters, or if `outer` has anything else.
    """
    unknown = next((name for name, value in outer.items() if name not in PARAMETER_KEYS and value is not None), None)
    if unknown is not None:
        raise BadRequest(
            "invalid_request", f"{unknown!r} is not accepted next to {key}; accepted are parameters and params", unknown
        )
    by_path = {f"{key}.{name}": value for name, value in inner.items()} | dict(outer)
    by_path = {path: value for path, value in by_path.items() if value is not None}
    if len(by_path) > 1:
        raise BadRequest("invalid_request", f"parameters are sent twice: {' and '.join(by_path)}", [*by_path][-1])
    if not by_path:
        return ParsedParameters(Parameters())
    ((path, parameters),) = by_path.items()
    if not isinstance(parameters, dict):
        raise BadRequest("invalid_request", "parameters must be an object", path)
    return parse_parameters(parameters, path)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
