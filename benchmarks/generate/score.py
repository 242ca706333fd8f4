"""The baseline: the same service with transformers' `generate` behind it, one sequence at a time, as it is used."""

import logging
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from transformers.generation.streamers import BaseStreamer

from llava_serving.api.body import HttpRequest
from llava_serving.api.connection import Connection
from llava_serving.engine.completion import SampledToken
from llava_serving.engine.prompt import EnginePrompt
from llava_serving.engine.request import RequestHandle, SequenceEnd, TextDelta
from llava_serving.engine.sequence import Sequence, random_numbers
from llava_serving.engine.sequence_output import Output
from llava_serving.engine.stats import Stats
from llava_serving.service.metrics import Metrics
from llava_serving.service.request_log import RequestLog
from llava_serving.service.scorer import Scorer
from llava_serving.service.startup import Phases, load
from llava_serving.weights.loader import LoadedModel


class GenerateEngine:
    """Has what Scorer calls of the engine; no queue limit, no deadline, no cancellation."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.stats = Stats()
        self._loaded = loaded
        self._thread = ThreadPoolExecutor(1)

    def check_admission(self) -> None:
        pass

    def submit(self, submissions: list[EnginePrompt], generation: RequestHandle) -> None:
        submitted = time.monotonic()
        for row, submission in enumerate(submissions):
            for index in range(submission.params.n):
                self._thread.submit(self._generate, submission, generation, (row, index), submitted)

    @torch.inference_mode()
    def _generate(
        self, submission: EnginePrompt, generation: RequestHandle, place: tuple[int, int], submitted: float
    ) -> None:
        tokenizer, model, params = self._loaded.tokenizer, self._loaded.model, submission.params
        ids = list(submission.token_ids)
        output = Output(
            Sequence(0, ids, submission.images, params, random_numbers(params.seed, place[1])),
            tokenizer.token_bytes,
            tokenizer.eos_id,
            submitted,
        )
        output.start(time.monotonic())
        inputs = {"input_ids": torch.tensor([ids], device=model.device)}
        if submission.images:
            pixels = torch.stack([image.pixels for image in submission.images])
            inputs["pixel_values"] = pixels.to(model.device, model.dtype)
        sampling = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=params.max_new_tokens,
            do_sample=params.temperature > 0,
            eos_token_id=None if params.ignore_eos else tokenizer.eos_id,
            pad_token_id=0,
            streamer=_Streamer(output, generation, place),
            **(sampling if params.temperature > 0 else {}),
        )
        reason = "length" if len(ids) - len(submission.token_ids) >= params.max_new_tokens else "stop"
        _, _, completion = output.finish(reason, time.monotonic())
        generation.post(SequenceEnd(*place, completion))


class _Streamer(BaseStreamer):
    def __init__(self, output: Output, generation: RequestHandle, place: tuple[int, int]) -> None:
        self._output = output
        self._generation = generation
        self._place = place
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self._output.push(SampledToken(int(value)), time.monotonic())
            text, logprobs = self._output.settle()
            if self._generation.streaming and text:
                self._generation.post(TextDelta(*self._place, text, logprobs))
        self._is_prompt = False

    def end(self) -> None:
        pass


def init() -> None:
    global scorer
    logging.getLogger("llava_serving").parent = logging.getLogger("azmlinfsrv.print")
    settings, loaded = load(Phases())
    engine = GenerateEngine(loaded)
    scorer = Scorer(settings, loaded, engine, RequestLog(Metrics(engine.stats)))  # type: ignore[arg-type]


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    headers = {name.lower(): value for name, value in request.headers.items()}
    connection = Connection(request.environ.get("gunicorn.socket"))
    reply = scorer.score(HttpRequest(request.method, headers, request.stream, connection))
    return AMLResponse(reply.body, reply.status, reply.headers)
