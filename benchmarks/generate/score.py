"""The baseline: the same service around transformers' `generate`, one sequence at a time, as it is commonly used."""

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

from llava_serving.api.connection import Connection
from llava_serving.api.http import HttpRequest
from llava_serving.engine.admission import Admission, Places
from llava_serving.engine.completion import SampledToken
from llava_serving.engine.prompt import EnginePrompt
from llava_serving.engine.request_handle import RequestHandle
from llava_serving.engine.sequence import Sequence, random_numbers
from llava_serving.engine.sequence_output import SequenceOutput
from llava_serving.engine.stats import Stats
from llava_serving.service.engine_builder import vocabulary_of
from llava_serving.service.intake_builder import build_intake
from llava_serving.service.metrics import Metrics
from llava_serving.service.request_log import RequestLog
from llava_serving.service.scorer import Scorer
from llava_serving.service.startup import PhaseTimes, load
from llava_serving.weights.loader import LoadedModel


class GenerateEngine:
    """Has the methods of the engine that the scorer calls. It has no queue limit, deadline or cancellation."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.stats = Stats()
        self._loaded = loaded
        self._admission = Admission(sys.maxsize)
        self._thread = ThreadPoolExecutor(1)

    def reserve(self, num_seqs: int = 1) -> Places:
        return self._admission.reserve(num_seqs)

    def submit(self, prompts: list[EnginePrompt], handle: RequestHandle, places: Places) -> None:
        now = time.monotonic()
        handle.expect(sum(prompt.params.n for prompt in prompts))
        for prompt_index, prompt in enumerate(prompts):
            for index in range(prompt.params.n):
                seq = Sequence(
                    0, list(prompt.token_ids), prompt.images, prompt.params, random_numbers(prompt.params.seed, index)
                )
                output = SequenceOutput(seq, vocabulary_of(self._loaded), handle, prompt_index, index, now)
                self._thread.submit(self._generate, prompt, output)

    @torch.inference_mode()
    def _generate(self, prompt: EnginePrompt, output: SequenceOutput) -> None:
        tokenizer, model, params = self._loaded.tokenizer, self._loaded.model, prompt.params
        output.schedule(time.monotonic())
        inputs = {"input_ids": torch.tensor([prompt.token_ids], device=model.device)}
        if prompt.images:
            pixels = torch.stack([image.pixels for image in prompt.images])
            inputs["pixel_values"] = pixels.to(model.device, model.dtype)
        sampling = {"temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        model.generate(
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            max_new_tokens=params.max_new_tokens,
            do_sample=params.temperature > 0,
            eos_token_id=None if params.ignore_eos else tokenizer.eos_id,
            pad_token_id=0,
            streamer=_Streamer(output),
            **(sampling if params.temperature > 0 else {}),
        )
        reason = "length" if output.seq.num_generated >= params.max_new_tokens else "stop"
        output.finish(reason, time.monotonic())


class _Streamer(BaseStreamer):
    """Passes each new token of `generate` on to the sequence's output."""

    def __init__(self, output: SequenceOutput) -> None:
        self._output = output
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            now = time.monotonic()
            self._output.push(SampledToken(int(value)), now)
            self._output.send_text(now)
        self._is_prompt = False

    def end(self) -> None:
        pass


def init() -> None:
    global scorer
    logging.getLogger("llava_serving").parent = logging.getLogger("azmlinfsrv.print")
    settings, loaded = load(PhaseTimes())
    engine = GenerateEngine(loaded)
    intake, request_log = build_intake(loaded, settings), RequestLog(Metrics(engine.stats))
    scorer = Scorer(settings, loaded, engine, intake, request_log)  # type: ignore[arg-type]


@rawhttp
def run(request: AMLRequest) -> AMLResponse:
    headers = {name.lower(): value for name, value in request.headers.items()}
    connection = Connection(request.environ.get("gunicorn.socket"))
    response = scorer.score(HttpRequest(request.method, headers, request.stream, connection))
    return AMLResponse(response.body, response.status, response.headers)
