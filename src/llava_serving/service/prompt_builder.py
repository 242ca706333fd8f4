"""From a ScoreRequest to the engine's prompts: token ids, pixels, and the limit of the context."""

import hashlib
from collections.abc import Callable

import torch

from ..api.score_request import ScoreRequest
from ..engine.prompt import EnginePrompt, PromptImage
from ..errors import BadRequest, ContextExceeded
from ..inputs.clip_preprocessor import Pixels
from ..inputs.prompt import ImageSource, Prompt
from ..settings import Settings
from ..weights.loader import LoadedModel

ReadImage = Callable[[ImageSource], Pixels]


class PromptBuilder:
    """Builds prompts for one loaded model, from any number of threads."""

    def __init__(self, settings: Settings, loaded: LoadedModel) -> None:
        self._tokenizer = loaded.tokenizer
        self._context_limit = _ContextLimit(loaded.context_length, settings.default_max_new_tokens)

    def build(self, request: ScoreRequest, read_image: ReadImage) -> list[EnginePrompt]:
        """Returns one EnginePrompt per prompt. Raises the RequestError that names the offending part."""
        return [self._build_prompt(request, prompt, read_image) for prompt in request.prompts]

    def _build_prompt(self, request: ScoreRequest, prompt: Prompt, read_image: ReadImage) -> EnginePrompt:
        """Checks the length before it tokenizes, and again before it reads images: a refusal costs little."""
        min_tokens = self._tokenizer.min_token_count(prompt.segments)
        self._context_limit.check_prompt(prompt, min_tokens, at_least=True)
        encoded = self._tokenizer.encode(prompt.segments)
        num_tokens = len(encoded.token_ids)
        self._context_limit.check_prompt(prompt, num_tokens)
        max_new_tokens = self._context_limit.max_new_tokens(request, num_tokens)
        params = request.parameters.sampling_params(max_new_tokens, prompt.separator, request.logprobs)
        images = []
        for source, start in zip(prompt.images, encoded.image_starts, strict=True):
            images.append(self._prompt_image(read_image(source), start))
        return EnginePrompt(encoded.token_ids, tuple(images), params)

    def _prompt_image(self, pixels: Pixels, start: int) -> PromptImage:
        digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        return PromptImage(start, self._tokenizer.image.count, digest, torch.from_numpy(pixels))


class _ContextLimit:
    """Holds a prompt and its answer, images included, against the model's `context_length` tokens."""

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
                prompt.path,
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
