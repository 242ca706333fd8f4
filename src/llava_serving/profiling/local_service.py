"""A service in this process, whose steps are measured while it answers requests."""

import io
from collections.abc import Callable

import torch

from ..api.http import HttpRequest
from ..service.startup import start
from .instrumentation import instrumented
from .step_timer import StepTimer, StepTimes


class LocalService:
    """The service that the environment's settings and AZUREML_MODEL_DIR describe, without a server in front of it.

    Raises StartupError if it does not start.
    """

    def __init__(self) -> None:
        self._scorer = start()
        self._device: torch.device = self._scorer.model.model.device

    def answer(self, body: bytes) -> str | None:
        """Answers the JSON body of a request to its end. Returns None, or the error."""
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        response = self._scorer.score(HttpRequest("POST", headers, io.BytesIO(body)))
        answer = response.body if isinstance(response.body, bytes) else b"".join(response.body)
        failed = response.status != 200 or b"event: error" in answer
        return f"{response.status}: {answer[-500:].decode('utf-8', 'replace')}" if failed else None

    def steps_of(self, send_requests: Callable[[], None]) -> list[StepTimes]:
        """Returns the steps that the engine takes while `send_requests` runs, which waits for all of its answers."""
        timer = StepTimer(synchronize=torch.cuda.synchronize if self._is_on_gpu else lambda: None)
        with instrumented(timer):
            send_requests()
        return timer.steps

    @property
    def description(self) -> str:
        """Says what the times are of."""
        model = self._scorer.model
        measured = f"{model.num_parameters / 1e6:,.1f} million parameters in {model.model.dtype} on {self._device}"
        if not self._is_on_gpu:
            return f"{measured}, {torch.get_num_threads()} threads"
        return (
            f"{measured}. The host waits for the GPU before and after each part, so a part's time is the GPU's and the "
            "host's together. Nothing overlaps and no CUDA graph is used: the service's own steps are faster"
        )

    @property
    def _is_on_gpu(self) -> bool:
        return self._device.type == "cuda"
