"""The one place where a prompt and its answer are held against the model's context length."""

from ..api.request import ScoreRequest
from ..errors import BadRequest, ContextExceeded
from ..inputs.prompt import Prompt


class ContextLimit:
    """`context_length` tokens of prompt, images and answer together."""

    def __init__(self, context_length: int, default_max_new_tokens: int) -> None:
        self._context_length = context_length
        self._default_max_new_tokens = default_max_new_tokens

    def check_prompt(self, prompt: Prompt, num_tokens: int, at_least: bool = False) -> None:
        """Raises ContextExceeded if the prompt leaves no room for an answer.

        `at_least` says that `num_tokens` is a lower bound, which is known before the prompt is tokenized.
        """
        if num_tokens >= self._context_length:
            raise ContextExceeded(
                "context_length_exceeded",
                f"the prompt with its images has {'at least ' if at_least else ''}{num_tokens} tokens, and the model's "
                f"context holds {self._context_length} tokens of prompt and answer together",
                prompt.param,
            )

    def max_new_tokens(self, request: ScoreRequest, prompt_tokens: int) -> int:
        """Returns the requested number, or else the default, cut at the end of the context.

        Raises ContextExceeded if the requested number does not fit, and BadRequest if min_new_tokens is larger.
        """
        maximum, minimum = request.parameters.max_new_tokens, request.parameters.min_new_tokens
        self._check_answer(request, prompt_tokens)
        if maximum is None:
            return min(max(minimum, self._default_max_new_tokens), self._context_length - prompt_tokens)
        if minimum > maximum:
            raise BadRequest(
                "invalid_parameter",
                f"min_new_tokens is {minimum}, more than max_new_tokens, which is {maximum}",
                request.parameter_path("min_new_tokens"),
            )
        return maximum

    def _check_answer(self, request: ScoreRequest, prompt_tokens: int) -> None:
        maximum = request.parameters.max_new_tokens
        name = "min_new_tokens" if maximum is None else "max_new_tokens"
        answer_tokens = request.parameters.min_new_tokens if maximum is None else maximum
        if prompt_tokens + answer_tokens > self._context_length:
            raise ContextExceeded(
                "context_length_exceeded",
                f"the prompt with its images has {prompt_tokens} tokens and {name} is {answer_tokens}: "
                f"{prompt_tokens + answer_tokens} tokens, and the model's context holds {self._context_length}",
                request.parameter_path(name),
            )
