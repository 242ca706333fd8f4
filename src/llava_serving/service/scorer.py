"""A request from its bytes to its HttpResponse: the only caller of the engine.

The path: forms (what is asked) -> image, preprocess (pixels) -> tokenizer (ids) -> engine -> answer or stream.
"""

import hashlib
import logging
import re
import time
from functools import partial
from typing import Any

from ..api.body import HttpRequest, discard, read_body
from ..api.request import ScoreRequest, parse
from ..api.response import HttpResponse, answer_body, answer_response, error_response, refusal
from ..api.stream import stream_response
from ..engine.engine import Engine
from ..engine.prompt import EnginePrompt, PromptImage
from ..engine.request import RequestHandle
from ..errors import BadRequest, ContextExceeded, InternalError, Overloaded, RequestError, TooLarge, Unavailable
from ..inputs.image import ImageLimits, ImageReader
from ..inputs.image_url import AllowListFetcher
from ..inputs.prompt import Prompt
from ..settings import Settings
from ..weights.loader import LoadedModel
from .request_log import RequestLog, RequestRecord

logger = logging.getLogger(__name__)
# Between two looks whether the engine has room again.
ROOM_SECONDS = 0.02


class Scorer:
    """Answers requests about one loaded model, from any number of threads."""

    def __init__(self, settings: Settings, loaded: LoadedModel, engine: Engine, journal: RequestLog) -> None:
        self._settings = settings
        self._loaded = loaded
        self._engine = engine
        self._journal = journal
        limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
        hosts = settings.image_url_hosts
        fetch = AllowListFetcher(hosts, settings.image_url_timeout_seconds) if hosts else None
        self._images = ImageReader(limits, fetch)

    @property
    def model(self) -> LoadedModel:
        return self._loaded

    def drain(self, seconds: float) -> None:
        """Lets nothing in any more, and ends what is under way in `seconds`."""
        self._engine.drain(seconds)

    def score(self, request: HttpRequest) -> HttpResponse:
        """Never raises: what goes wrong with one request ends that request alone."""
        if request.method == "OPTIONS":  # a browser's preflight; the server adds the CORS headers it is set to
            return HttpResponse(200, {"Allow": "POST"}, b"")
        record = RequestRecord.begin(request.headers)
        try:
            return self._score(request, record)
        except RequestError as error:
            refused = error
        except Exception:
            logger.exception("a request failed")
            refused = InternalError("internal_error", "the service failed on this request; its log says why")
        self._journal.write(record, {}, refused)
        return error_response(refused)

    def answer(self, body: bytes) -> Any:
        """What a body that came by no request is answered, however long a place in the engine has to be waited for.

        Raises RequestError; nothing is written down of it.
        """
        if len(body) > self._settings.max_body_bytes:
            raise TooLarge("body_too_large", f"the request has more than {self._settings.max_body_bytes:,} bytes")
        asked = parse(body, self._loaded.template)
        submissions = self._submissions(asked)
        generation = RequestHandle(_sizes(asked))
        while True:
            try:
                self._engine.submit(submissions, generation)
                break
            except Overloaded:
                time.sleep(ROOM_SECONDS)
        rows = generation.result()
        if any(completion.finish_reason == "deadline" for row in rows for completion in row):
            raise Unavailable("draining", "the service was shut down before the end of this answer")
        return answer_body(asked, rows)

    def _score(self, request: HttpRequest, record: RequestRecord) -> HttpResponse:
        deadline = time.monotonic() + self._seconds_allowed(request)
        try:
            self._engine.check_admission()  # before the work of reading and decoding
            body = read_body(request, self._settings.max_body_bytes)
        except RequestError:
            discard(request, 2 * self._settings.max_body_bytes)
            raise
        streaming = _wants_stream(request)
        asked = parse(body, self._loaded.template, streaming)
        streaming = streaming or asked.parameters.stream
        record.asked(asked, streaming)
        submissions = self._submissions(asked)
        generation = RequestHandle(_sizes(asked), streaming, deadline, request.connection.gone)
        self._engine.submit(submissions, generation)
        if streaming:
            told = partial(self._journal.write, record)
            return stream_response(asked, generation, request.connection, told)
        return self._answer(asked, generation, record)

    def _answer(self, asked: ScoreRequest, generation: RequestHandle, record: RequestRecord) -> HttpResponse:
        rows = generation.result()
        completions = {(row, i): completion for row, of_row in enumerate(rows) for i, completion in enumerate(of_row)}
        error = refusal(completions.values())
        self._journal.write(record, completions, error)
        return answer_response(asked, rows) if error is None else error_response(error)

    def _seconds_allowed(self, request: HttpRequest) -> float:
        """The deployment's, or less if the caller's proxy says that it waits less."""
        most = self._settings.request_timeout_seconds
        asked = request.headers.get("x-ms-request-timeout-ms", "").strip()
        if not re.fullmatch(r"[0-9]{1,15}", asked) or int(asked) == 0:
            return most
        return min(most, int(asked) / 1e3 * 0.9)  # a tenth is kept for the way back

    def _submissions(self, asked: ScoreRequest) -> list[EnginePrompt]:
        self._check_counts(asked)
        return [self._submission(asked, prompt) for prompt in asked.prompts]

    def _check_counts(self, asked: ScoreRequest) -> None:
        sequences = len(asked.prompts) * asked.parameters.n
        if sequences > self._settings.max_sequences:
            raise BadRequest(
                "too_many_sequences",
                f"the request asks for {sequences} sequences (prompts x n); at most "
                f"{self._settings.max_sequences} are accepted",
                asked.given.path("n") if asked.parameters.n > 1 else _whole(asked),
            )
        images = [image for prompt in asked.prompts for image in prompt.images]
        if len(images) > self._settings.max_images:
            raise BadRequest(
                "too_many_images",
                f"the request holds {len(images)} images; at most {self._settings.max_images} are accepted",
                images[self._settings.max_images].param,
            )

    def _submission(self, asked: ScoreRequest, prompt: Prompt) -> EnginePrompt:
        tokenizer = self._loaded.tokenizer
        # Before anything is tokenized or decoded, and again before images are: what does not fit costs little.
        self._check_prompt(prompt, tokenizer.fewest_tokens(prompt.segments), "at least ")
        token_ids = tokenizer.encode(prompt.segments)
        self._check_prompt(prompt, len(token_ids))
        max_new_tokens = self._max_new_tokens(asked, len(token_ids))
        separator = self._loaded.template.separator if prompt.is_question else None
        params = asked.parameters.sampling(max_new_tokens, separator, asked.logprobs)
        starts = tokenizer.image_starts(token_ids)
        images = (self._image(prompt, number, start) for number, start in enumerate(starts))
        return EnginePrompt(tuple(token_ids), tuple(images), params)

    def _check_prompt(self, prompt: Prompt, num_tokens: int, known: str = "") -> None:
        """`known` says how well `num_tokens` is known."""
        context = self._loaded.context_length
        if num_tokens >= context:
            raise ContextExceeded(
                "context_length_exceeded",
                f"the prompt with its images has {known}{num_tokens} tokens, and the model's context holds "
                f"{context} tokens of prompt and answer together",
                prompt.param,
            )

    def _max_new_tokens(self, asked: ScoreRequest, prompt_tokens: int) -> int:
        """As asked, or the default as far as the context goes."""
        context, wanted, least = (
            self._loaded.context_length,
            asked.parameters.max_new_tokens,
            asked.parameters.min_new_tokens,
        )
        name = "max_new_tokens" if wanted is not None else "min_new_tokens"
        asked_for = wanted if wanted is not None else least
        if prompt_tokens + asked_for > context:
            raise ContextExceeded(
                "context_length_exceeded",
                f"the prompt with its images has {prompt_tokens} tokens and {name} is {asked_for}: "
                f"{prompt_tokens + asked_for} tokens, and the model's context holds {context}",
                asked.given.path(name),
            )
        if wanted is not None and least > wanted:
            raise BadRequest(
                "invalid_parameter",
                f"min_new_tokens is {least}, more than max_new_tokens, which is {wanted}",
                asked.given.path("min_new_tokens"),
            )
        default = max(least, self._settings.default_max_new_tokens)
        return wanted if wanted is not None else min(default, context - prompt_tokens)

    def _image(self, prompt: Prompt, number: int, start: int) -> PromptImage:
        preprocess, most = self._loaded.preprocessor, self._settings.max_image_pixels
        pixels = self._images.read(prompt.images[number], lambda picture: preprocess(picture, most))
        digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
        return PromptImage(start, self._loaded.tokenizer.image.count, digest, pixels)


def _sizes(asked: ScoreRequest) -> list[int]:
    """How many sequences each row has."""
    return [asked.parameters.n] * len(asked.prompts)


def _whole(asked: ScoreRequest) -> str:
    """The path of what holds all rows of a request of several."""
    return asked.prompts[0].param.rpartition("[")[0]


def _wants_stream(request: HttpRequest) -> bool:
    accepted = request.headers.get("accept", "").lower()
    return "text/event-stream" in accepted and "application/json" not in accepted
