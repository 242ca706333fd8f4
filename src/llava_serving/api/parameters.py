"""The generation parameters of a request: names, aliases, ranges and what they mean to the engine."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..engine.prompt import SamplingParams
from ..errors import BadRequest
from ..inputs.templates import V0, Template
from .schema import as_list, validate

ALIASES = {
    "max_tokens": "max_new_tokens",
    "max_gen_len": "max_new_tokens",
    "num_return_sequences": "n",
}
# OpenAI's name, and the one its load testers send.
CHAT_COMPLETION_ALIASES = ALIASES | {"max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
MAX_STOP_STRINGS = 16
MAX_COUNT = 2**31 - 1
# Below it the authors' worker was greedy (LLaVA@ff9b89f llava/serve/model_worker.py), and logits overflow soon after.
LEAST_TEMPERATURE = 1e-4

StopString = Annotated[str, Field(min_length=1, max_length=256)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]


class Parameters(BaseModel):
    """Every field is honored or refused; None is a parameter left out."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_new_tokens: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    min_new_tokens: int = Field(default=0, ge=0, le=MAX_COUNT)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=-1, le=MAX_COUNT)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100, allow_inf_nan=False)
    stop: Annotated[
        list[StopString],
        BeforeValidator(as_list, json_schema_input_type=StopString | StopStrings),
        Field(max_length=MAX_STOP_STRINGS),
    ] = []
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int = Field(default=1, ge=1, le=MAX_COUNT)
    return_full_text: bool | None = None
    template: Literal["v0", "v1", "none"] | None = None
    stream: bool = False
    ignore_eos: bool = False

    def sampling(self, max_new_tokens: int, separator: str | None, logprobs: int | None) -> SamplingParams:
        """For the engine: `max_new_tokens` as settled against the context, `separator` the template's end of turn."""
        ends = (separator,) if separator is not None and not self.ignore_eos else ()
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            temperature=self._temperature(),
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            repetition_penalty=self.repetition_penalty,
            stop=(*self.stop, *ends),
            seed=self.seed,
            n=self.n,
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )

    def _temperature(self) -> float:
        """0 is greedy: without `do_sample`, a temperature above 0 asks for sampling."""
        if self.do_sample is False or (self.do_sample is None and not self.temperature):
            return 0.0
        temperature = 1.0 if self.temperature is None else self.temperature
        return temperature if temperature >= LEAST_TEMPERATURE else 0.0


@dataclass(frozen=True)
class GivenParameters:
    """Parameters, and the path in the request of each that was given."""

    values: Parameters
    paths: Mapping[str, str] = field(default_factory=dict, compare=False)
    conversation: Template = V0  # what the model was trained with

    def under(self, conversation: Template) -> "GivenParameters":
        """For a model of that conversation. Raises BadRequest if another was asked for."""
        if self.values.template not in (None, "none", conversation.name):
            raise BadRequest(
                "invalid_parameter",
                f"this model's template is {conversation.name}; accepted are {conversation.name} and none",
                self.path("template"),
            )
        return replace(self, conversation=conversation)

    @property
    def wraps(self) -> bool:
        """The request asks for the template where it would not be used by itself."""
        return self.values.template == self.conversation.name

    def path(self, name: str) -> str:
        """Where an error about a parameter points: as the caller wrote it, alias and all."""
        return self.paths.get(name, name)


def read_parameters(
    given: Mapping[str, Any], path: str, aliases: Mapping[str, str] = ALIASES, beside: Iterable[str] = ()
) -> GivenParameters:
    """The parameters of the object at `path`; null is a parameter left out.

    `beside` are names accepted in the same object that are no parameters. Raises BadRequest: an unknown name is told
    with the list of known ones.
    """
    known = {*Parameters.model_fields, *aliases}
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        param = f"{path}.{name}" if path else name
        if name in ("logprobs", "top_logprobs"):
            if value is None:
                continue
            raise BadRequest(
                "unsupported_parameter", "logprobs are answered to OpenAI chat completion requests alone", param
            )
        if name not in known:
            accepted = ", ".join(sorted({*known, *beside}))
            raise BadRequest("unknown_parameter", f"{name!r} is not a parameter; accepted are {accepted}", param)
        canonical = aliases.get(name, name)
        if canonical in fields:
            raise BadRequest("invalid_parameter", f"{name!r} says again what {canonical!r} or its alias said", param)
        if value is not None:
            fields[canonical], names[canonical] = value, name
    parameters = validate(Parameters, fields, path, names, code="invalid_parameter")
    return GivenParameters(parameters, {f: f"{path}.{name}" if path else name for f, name in names.items()})
