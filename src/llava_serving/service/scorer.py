"""One request from its bytes to its HttpResponse.

The path: intake (bytes to a ScoreRequest and pixels), prompt_builder (token ids), engine (completions), api (response).
"""

import contextlib
import logging
import math
import re
from functools import partial
from typing import Any

from ..api.body import body_length, body_pieces
from ..api.http import HttpRequest, HttpResponse
from ..api.model_info import asks_for_model_info, model_info
from ..api.paths import SCORE
from ..api.response import answer_body, answer_response, completion_error, error_response, json_response
from ..api.score_request import ScoreRequest
from ..api.stream import stream_response
from ..engine.admission import Places
from ..engine.engine import Engine
from ..engine.prompt import EnginePrompt
from ..engine.request_handle import RequestHandle
from ..errors import (
    BadRequest,
    InternalError,
    MethodNotAllowed,
    Overloaded,
    RequestError,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from ..intake.input_processes import Caller
from ..intake.intake import IncomingBody, Intake, ParsedRequest
from ..settings import Settings
from ..weights.loader import LoadedModel
from .prompt_builder import PromptBuilder
from .request_log import RequestLog, RequestRecord

logger = logging.getLogger(__name__)
# The share of the client's time limit that is spent here. The rest is for the network.
TIME_LIMIT_SHARE = 0.9
# A refused body of this size is parsed in a tenth of a millisecond.
MAX_COUNTED_BYTES = 64 * 1024


class Scorer:
    """Answers requests about one loaded model, from any number of threads."""

    def __init__(
        self, settings: Settings, loaded: LoadedModel, engine: Engine, intake: Intake, request_log: RequestLog
    ) -> None:
        self._settings = settings
        self._loaded = loaded
        self._engine = engine
        self._intake = intake
        self._request_log = request_log
        self._prompts = PromptBuilder(settings, loaded)

    @property
    def model(self) -> LoadedModel:
        return self._loaded

    def drain(self, seconds: float) -> None:
        """Admits no request any more, and ends the admitted ones within `seconds`."""
        self._engine.drain(seconds)

    def score(self, request: HttpRequest) -> HttpResponse:
        """Answers a request over HTTP. Never raises: an error ends its own request alone."""
        if request.method == "OPTIONS":  # a browser's preflight; the server adds the CORS headers that it is set to
            return HttpResponse(200, {"Allow": "GET" if asks_for_model_info(request) else "POST"}, b"")
        record = RequestRecord.begin(request.headers)
        try:
            if asks_for_model_info(request):
                return json_response(model_info(request))
            return self._score(request, record)
        except RequestError as error:
            request_error = error
        except Exception:
            logger.exception("a request failed")
            request_error = InternalError("internal_error", "the service failed on this request; its log says why")
        self._request_log.write(record, [], request_error)
        return error_response(request_error)

    def answer(self, body: bytes) -> Any:
        """Answers the body of a batch row with a JSON value.

        Waits for capacity of the engine, first come, first served. Raises RequestError. The request log has no line
        about it.
        """
        if len(body) > self._settings.max_body_bytes:
            raise TooLarge("body_too_large", f"the request has more than {self._settings.max_body_bytes:,} bytes")
        caller = Caller(math.inf)
        parsed = self._intake.parse(IncomingBody([body], len(body), accepts_stream=False, path=SCORE), caller)
        handle = RequestHandle()
        with self._engine.reserve(parsed.request.num_sequences, wait=True) as places:
            self._engine.submit(self._build_prompts(parsed, caller), handle, places)
        completions = handle.result()
        if any(completion.finish_reason == "deadline" for completion in completions):
            raise Unavailable("draining", "the service was shut down before the end of this answer")
        return answer_body(parsed.request, completions)

    def _score(self, http: HttpRequest, record: RequestRecord) -> HttpResponse:
        deadline = http.began + self._time_limit_seconds(http)
        handle = RequestHandle(deadline=deadline, is_disconnected=http.connection.is_disconnected)
        request = self._submit(http, record, handle)
        if request.stream:
            return stream_response(request, handle, partial(self._request_log.write, record))
        completions = handle.result()
        error = completion_error(completions)
        self._request_log.write(record, completions, error)
        return answer_response(request, completions) if error is None else error_response(error)

    def _submit(self, http: HttpRequest, record: RequestRecord, handle: RequestHandle) -> ScoreRequest:
        """Reads a request, and submits it to the engine. Returns it without its images, which are large.

        A place in the engine comes first, so that no work is done for a request that is refused then.
        """
        caller = Caller(handle.deadline, handle.is_disconnected)
        with self._reserve(http, caller) as places:
            parsed = self._intake.parse(self._body(http), caller)
            record.describe(parsed.request)
            places.grow_to(parsed.request.num_sequences)
            handle.streaming = parsed.request.stream
            self._engine.submit(self._build_prompts(parsed, caller), handle, places)
        return parsed.request.without_image_data()

    def _reserve(self, http: HttpRequest, caller: Caller) -> Places:
        """Returns a place for a request. Raises Overloaded or Unavailable.

        A short body is parsed even then: the number of its sequences says how long the client should wait.
        """
        try:
            return self._engine.reserve()
        except Overloaded:
            if (body_length(http) or 0) <= MAX_COUNTED_BYTES:
                with contextlib.suppress(BadRequest, UnsupportedMediaType, MethodNotAllowed):
                    parsed = self._intake.parse(self._body(http), caller)
                    self._engine.check_admission(parsed.request.num_sequences)
            raise

    def _body(self, http: HttpRequest) -> IncomingBody:
        pieces = body_pieces(http, self._settings.max_body_bytes)
        return IncomingBody(pieces, body_length(http), _accepts_stream(http), http.path)

    def _build_prompts(self, parsed: ParsedRequest, caller: Caller) -> list[EnginePrompt]:
        return self._prompts.build(parsed.request, lambda source: self._intake.image(parsed, source, caller))

    def _time_limit_seconds(self, http: HttpRequest) -> float:
        """Returns the deployment's limit, or a shorter one that the client's proxy sends."""
        limit = self._settings.request_timeout_seconds
        milliseconds = http.headers.get("x-ms-request-timeout-ms", "").strip()
        if not re.fullmatch(r"[0-9]{1,15}", milliseconds) or int(milliseconds) == 0:
            return limit
        return min(limit, int(milliseconds) / 1e3 * TIME_LIMIT_SHARE)


def _accepts_stream(http: HttpRequest) -> bool:
    accepted = http.headers.get("accept", "").lower()
    return "text/event-stream" in accepted and "application/json" not in accepted
