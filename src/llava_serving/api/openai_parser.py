"""Parses OpenAI's two forms of request: chat completions, and the legacy text completions."""

from collections.abc import Mapping
from typing import Any

from ..errors import BadRequest
from ..inputs.prompt import ConversationTemplate, TextInput, question_prompt, raw_prompt
from .chat_messages import build_chat_prompt, drop_neutral_fields
from .openai_fields import IGNORED, NEUTRAL_VALUES, drop_neutral
from .parameters import OPENAI_ALIASES, ParsedParameters, check_template, parse_parameters
from .paths import CHAT_COMPLETIONS, COMPLETIONS, SCORE
from .schema import ChatCompletionBody, CompletionBody, Model, StreamOptions, validate
from .score_request import ScoreRequest


class OpenAIParser:
    """Parses requests for a model with the given conversation template.

    In all methods, `accepts_stream` says that the request's headers ask for a stream.
    """

    def __init__(self, template: ConversationTemplate) -> None:
        self._template = template

    def parse_chat_completion(self, content: Mapping[str, Any], accepts_stream: bool) -> ScoreRequest:
        """Returns the request of a JSON object with `messages`. Raises BadRequest."""
        _check_path(content, "messages", {"prompt": COMPLETIONS[0], "input_data": SCORE, "inputs": SCORE})
        messages = drop_neutral_fields(content.get("messages"), "messages")
        body, parameters = self._split(ChatCompletionBody, {**content, "messages": messages})
        if body.top_logprobs and not body.logprobs:
            raise BadRequest("invalid_parameter", "top_logprobs needs logprobs: true", "top_logprobs")
        prompt = build_chat_prompt(body.messages, "messages", self._template, parameters)
        return ScoreRequest(
            "chat_completion",
            (prompt,),
            parameters.values,
            parameters.paths,
            echo=(False,),
            model=body.model,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            include_usage=_include_usage(body.stream_options, accepts_stream, parameters),
        )

    def parse_completion(self, content: Mapping[str, Any], accepts_stream: bool) -> ScoreRequest:
        """Returns the request of a JSON object with `prompt`: raw text, unless `template` asks for the template."""
        _check_path(content, "prompt", {"messages": CHAT_COMPLETIONS[0], "input_data": SCORE, "inputs": SCORE})
        body, parameters = self._split(CompletionBody, content)
        _check_completion(body, parameters)
        sources = [TextInput(text, (), f"prompt[{i}]") for i, text in enumerate(body.prompt)]
        in_template = parameters.values.template == self._template.name
        prompts = tuple(
            question_prompt(source, self._template) if in_template else raw_prompt(source) for source in sources
        )
        return ScoreRequest(
            "completion",
            prompts,
            parameters.values,
            parameters.paths,
            echo=(body.echo,) * len(prompts),
            model=body.model,
            logprobs=body.logprobs,
            include_usage=_include_usage(body.stream_options, accepts_stream, parameters),
        )

    def _split(self, model: type[Model], content: Mapping[str, Any]) -> tuple[Model, ParsedParameters]:
        """Returns the fields of `model`, and the parameters, which are all other fields."""
        content = drop_neutral(content)
        fields = {name: value for name, value in content.items() if name in model.model_fields}
        others = {name: value for name, value in content.items() if name not in model.model_fields}
        parameters = parse_parameters(others, "", OPENAI_ALIASES, model.model_fields, {*NEUTRAL_VALUES, *IGNORED})
        check_template(parameters, self._template)
        if parameters.values.return_full_text:
            raise BadRequest("invalid_parameter", "OpenAI's forms do not return the full text", "return_full_text")
        return validate(model, fields, ""), parameters


def _check_path(content: Mapping[str, Any], field: str, paths: Mapping[str, str]) -> None:
    """Raises BadRequest that names the path of the form, if the body has another form than its path."""
    other = next((name for name in paths if content.get(name) is not None), None)
    if other is not None and content.get(field) is None:
        raise BadRequest(
            "invalid_request", f"this path needs {field}; send a body with {other} to {paths[other]}", other
        )


def _include_usage(options: StreamOptions | None, accepts_stream: bool, parameters: ParsedParameters) -> bool:
    include_usage = options is not None and options.include_usage
    if include_usage and not (accepts_stream or parameters.values.stream):
        raise BadRequest("invalid_parameter", "include_usage needs stream: true", "stream_options")
    return include_usage


def _check_completion(body: CompletionBody, parameters: ParsedParameters) -> None:
    if body.echo and body.logprobs is not None:
        message = "echo with logprobs is not supported: the prompt's tokens have no log-probabilities here"
        raise BadRequest("unsupported_parameter", message, "echo")
    if body.best_of not in (None, parameters.values.n):
        message = (
            f"best_of is {body.best_of} and n is {parameters.values.n}: this service generates no more than it returns"
        )
        raise BadRequest("unsupported_parameter", message, "best_of")
