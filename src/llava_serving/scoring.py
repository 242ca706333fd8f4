"""A request from its bytes to its Reply: the only caller of the engine.

The path: forms (what is asked) -> image, preprocess (pixels) -> tokenizer (ids) -> engine -> answer.
"""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from email.message import Message
from typing import Protocol

import torch

from .answer import Reply, answer_reply, error_reply
from .engine import GenerateEngine, Generation, Submission
from .errors import (
    BadRequest,
    ContextExceeded,
    InternalError,
    MethodNotAllowed,
    RequestError,
    TooLarge,
    UnsupportedMediaType,
)
from .forms import ScoreRequest, parse
from .image import ImageLimits, ImageReader
from .image_url import AllowListFetcher
from .prompt import SEPARATOR, Prompt
from .self_check import self_check
from .settings import Settings
from .weights.loader import LoadedModel, load_model
from .weights.model_dir import find_model

logger = logging.getLogger(__name__)


class Body(Protocol):
    """Where the body of a request is read from."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class HttpRequest:
    """What scoring needs of an HTTP request; header names in lower case."""

    method: str
    headers: Mapping[str, str]
    body: Body


class Scorer:
    """Answers requests about one loaded model, from any number of threads."""

    def __init__(self, settings: Settings, loaded: LoadedModel) -> None:
        self._settings = settings
        self._loaded = loaded
        self._limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        hosts = settings.image_url_hosts
        fetch = AllowListFetcher(hosts, settings.image_url_timeout_seconds) if hosts else None
        self._images = ImageReader(self._limits, fetch)
        tokenizer = loaded.tokenizer
        self._engine = GenerateEngine(loaded.model, tokenizer.token_bytes, tokenizer.text_vocab_size, tokenizer.eos_id)

    @classmethod
    def from_environment(cls) -> "Scorer":
        """The scorer of this process's environment: `LLAVA_*` and AZUREML_MODEL_DIR. Raises StartupError."""
        settings = Settings.from_environment(os.environ)
        loaded = load_model(find_model(os.environ.get("AZUREML_MODEL_DIR")), settings.device, settings.dtype)
        if settings.self_check:
            self_check(loaded)
        return cls(settings, loaded)

    def score(self, request: HttpRequest) -> Reply:
        """Never raises: what goes wrong with one request ends that request alone."""
        if request.method == "OPTIONS":  # a browser's preflight; the server adds the CORS headers it is set to
            return Reply(200, {"Allow": "POST"}, b"")
        try:
            return self._score(request)
        except RequestError as error:
            return error_reply(error)
        except Exception:
            logger.exception("a request failed")
            return error_reply(InternalError("internal_error", "the service failed on this request; its log says why"))

    def _score(self, request: HttpRequest) -> Reply:
        asked = parse(read_body(request, self._settings.max_body_bytes))
        if asked.parameters.stream or _wants_stream(request):
            raise BadRequest(
                "streaming_unsupported", "streaming is not available yet; leave out stream and the Accept header",
                asked.given.path("stream") if asked.parameters.stream else None,
            )  # fmt: skip
        self._check_counts(asked)
        submissions = [self._submission(asked, prompt) for prompt in asked.prompts]
        return answer_reply(asked, self._generate(submissions))

    def _check_counts(self, asked: ScoreRequest) -> None:
        sequences = len(asked.prompts) * asked.parameters.n
        if sequences > self._settings.max_sequences:
            raise BadRequest(
                "too_many_sequences",
                f"the request asks for {sequences} sequences (prompts x n); at most "
                f"{self._settings.max_sequences} are accepted",
            )
        images = sum(len(prompt.images) for prompt in asked.prompts)
        if images > self._settings.max_images:
            raise BadRequest(
                "too_many_images",
                f"the request holds {images} images; at most {self._settings.max_images} are accepted",
            )

    def _submission(self, asked: ScoreRequest, prompt: Prompt) -> Submission:
        # Before anything is tokenized or decoded, and again before images are: what does not fit costs little.
        self._max_new_tokens(asked, prompt, self._loaded.tokenizer.fewest_tokens(prompt.segments), "at least ")
        token_ids = self._loaded.tokenizer.encode(prompt.segments)
        max_new_tokens = self._max_new_tokens(asked, prompt, len(token_ids))
        separator = SEPARATOR if prompt.is_question else None
        params = asked.parameters.sampling(max_new_tokens, separator, asked.logprobs)
        return Submission(tuple(token_ids), self._pixels(prompt), params)

    def _max_new_tokens(self, asked: ScoreRequest, prompt: Prompt, prompt_tokens: int, known: str = "") -> int:
        """As asked, or the default as far as the context goes. `known` says how well `prompt_tokens` is known."""
        context = self._loaded.context_length
        wanted = asked.parameters.max_new_tokens
        if prompt_tokens >= context:
            raise ContextExceeded(
                "context_length_exceeded",
                f"the prompt with its images has {known}{prompt_tokens} tokens, and the model's context holds "
                f"{context} tokens of prompt and answer together",
                prompt.param,
            )
        if wanted is not None and prompt_tokens + wanted > context:
            raise ContextExceeded(
                "context_length_exceeded",
                f"the prompt with its images has {known}{prompt_tokens} tokens and max_new_tokens is {wanted}: "
                f"{known}{prompt_tokens + wanted} tokens, and the model's context holds {context}",
                asked.given.path("max_new_tokens"),
            )
        settled = wanted or min(self._settings.default_max_new_tokens, context - prompt_tokens)
        if asked.parameters.min_new_tokens > settled:
            raise BadRequest(
                "invalid_parameter",
                f"min_new_tokens is {asked.parameters.min_new_tokens}, more than the {settled} new tokens there can be",
                asked.given.path("min_new_tokens"),
            )
        return settled

    def _pixels(self, prompt: Prompt) -> torch.Tensor | None:
        """(images, 3, size, size) float32."""
        pixels = []
        for source in prompt.images:
            try:
                pixels.append(self._loaded.preprocessor(self._images.read(source), self._limits.max_pixels))
            except RequestError as error:
                error.param = source.param
                raise
        return torch.stack(pixels) if pixels else None

    def _generate(self, submissions: list[Submission]) -> list[Generation]:
        futures: list[Future[Generation]] = [self._engine.submit(submission) for submission in submissions]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()  # what is still queued after another row failed


def read_body(request: HttpRequest, max_bytes: int) -> bytes:
    """The body of a POST of JSON, read no further than the limit. Raises RequestError."""
    if request.method != "POST":
        raise MethodNotAllowed("method_not_allowed", f"{request.method} is not accepted here; send POST")
    media_type = Message()
    media_type["content-type"] = request.headers.get("content-type", "application/json")
    charset = media_type.get_content_charset("utf-8")
    if media_type.get_content_type() != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(
            "unsupported_media_type", "the body must be JSON in UTF-8: send Content-Type: application/json"
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("unsupported_media_type", "a compressed body is not accepted")
    length = request.headers.get("content-length", "")
    body = request.body.read(max_bytes + 1) if not length.isdecimal() or int(length) <= max_bytes else None
    if body is None or len(body) > max_bytes:
        raise TooLarge("body_too_large", f"the body has more than the {max_bytes:,} bytes that are accepted")
    return body


def _wants_stream(request: HttpRequest) -> bool:
    accepted = request.headers.get("accept", "").lower()
    return "text/event-stream" in accepted and "application/json" not in accepted
