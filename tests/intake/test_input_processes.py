"""Large requests and pictures, which processes of their own read, in a scorer of this process."""

import base64
import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scoring import error_of, running_scorer, score, score_body, text_of
from server import as_base64

from llava_serving.errors import BadRequest, ClientClosed, DeadlineExceeded, InternalError
from llava_serving.inputs.image import ImageLimits
from llava_serving.inputs.templates import V0
from llava_serving.intake.input_processes import Caller, InputProcesses
from llava_serving.intake.intake import SMALL_BODY_BYTES, SMALL_IMAGE_PIXELS, default_num_processes
from llava_serving.intake.jobs import ReadImageJob, ReadRequestJob
from llava_serving.intake.request_reader import IntakeConfig
from llava_serving.service.scorer import Scorer
from llava_serving.weights.loader import LoadedModel

SMALL = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 20).convert("RGB")
IMAGE = as_base64(SMALL)


@pytest.fixture(scope="module")
def scorer(loaded: LoadedModel) -> Iterator[Scorer]:
    with running_scorer(loaded, default_max_new_tokens=8, max_images=3) as scorer:
        yield scorer


@pytest.fixture
def processes(loaded: LoadedModel) -> Iterator[InputProcesses]:
    config = IntakeConfig(
        template=V0,
        preprocessor=loaded.preprocessor,
        image_limits=ImageLimits(20 * 2**20, 50_000_000),
        image_url_hosts=(),
        image_url_timeout_seconds=1,
        max_sequences=8,
        max_images=2,
        max_body_bytes=2**24,
        max_prompt_characters=10_000,
    )
    processes = InputProcesses(config, 1)
    processes.check()
    yield processes
    processes.stop()


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def later(seconds: float) -> Caller:
    return Caller(time.monotonic() + seconds)


def padded(body: dict[str, Any]) -> bytes:
    """Returns a body that an input process reads, because of the spaces behind it."""
    return json.dumps(body).encode() + b" " * SMALL_BODY_BYTES


def prompts(*texts: str, image: str | list[str] | None = None, **parameters: Any) -> dict[str, Any]:
    images = [image] * len(texts)
    return {"input_data": {"input_string": list(texts), "images": images, "parameters": parameters}}


@pytest.mark.parametrize("image", [None, IMAGE])
def test_a_large_body_has_the_answer_of_a_small_one(scorer: Scorer, image: str | None) -> None:
    body = prompts("What is it?", "And now?", image=image, ignore_eos=True)
    small = score_body(scorer, body)
    large = score_body(scorer, padded(body))
    assert small.status == large.status == 200
    assert large.body == small.body
    assert large.headers["x-llava-prompt-tokens"] == small.headers["x-llava-prompt-tokens"]


def test_a_large_picture_in_a_small_body_has_the_answer_of_one_in_a_large_body(scorer: Scorer) -> None:
    side = int(SMALL_IMAGE_PIXELS**0.5) + 10
    image = as_base64(SMALL.resize((side, side)), "JPEG", quality=30)
    body = prompts("What is it?", image=image, ignore_eos=True)
    assert len(json.dumps(body)) < SMALL_BODY_BYTES
    assert text_of(score_body(scorer, body)) == text_of(score_body(scorer, padded(body)))


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b"{" + b" " * SMALL_BODY_BYTES, 400, "invalid_json", None),
        (padded(prompts("a", n=1000)), 400, "too_many_sequences", "input_data.parameters.n"),
        (padded(prompts("a", image="!!!!")), 400, "invalid_image", "input_data.images[0]"),
        (padded(prompts("a", nonsense=1)), 400, "unknown_parameter", "input_data.parameters.nonsense"),
        (padded(prompts("a" * 2_000_000)), 422, "context_length_exceeded", "input_data.input_string[0]"),
        (padded(prompts("<image>" * 4, image=[IMAGE] * 4)), 400, "too_many_images", "input_data.images[0][3]"),
        (b"[" * 2 * SMALL_BODY_BYTES, 413, "body_too_large", None),
        (b"[" + b"1," * SMALL_BODY_BYTES + b"1]", 413, "body_too_large", None),
    ],
)  # fmt: skip
def test_an_error_in_a_large_body_is_told_as_in_a_small_one(
    scorer: Scorer, body: bytes, status: int, code: str, param: str | None
) -> None:
    response = score_body(scorer, body)
    error = error_of(response)
    assert (response.status, error["code"], error["param"]) == (status, code, param)


def test_a_picture_whose_scaled_size_is_too_large_is_refused_before_it_is_decoded(scorer: Scorer) -> None:
    tall = as_base64(Image.new("L", (1, 20_000_000)))
    response = score(scorer, "?", tall)
    assert (response.status, error_of(response)["code"]) == (413, "image_too_large")


def test_a_killed_process_is_replaced_and_its_request_told(processes: InputProcesses) -> None:
    big = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)))
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(processes.run, ReadImageJob("a"), slow_pieces(big), later(60))
        time.sleep(0.3)
        (pid,) = processes.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InternalError):
            request.result(60)
    assert processes.pids != [pid]
    assert processes.run(ReadImageJob("a"), [png(SMALL)], later(60)).shape[0] == 3


def slow_pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), len(data) // 20):
        time.sleep(0.05)
        yield data[start : start + len(data) // 20]


def test_waiting_callers_are_served_in_order_and_leave_at_their_deadline(processes: InputProcesses) -> None:
    order: list[int] = []
    hold = threading.Event()

    def pieces(number: int) -> Iterator[bytes]:
        order.append(number)
        if number == 0:
            hold.wait(60)
        yield png(SMALL)

    with ThreadPoolExecutor(8) as pool:
        requests = []
        for number in range(4):
            requests.append(pool.submit(processes.run, ReadImageJob("a"), pieces(number), later(60)))
            time.sleep(0.1)
        late = pool.submit(processes.run, ReadImageJob("a"), pieces(9), later(0.2))
        gone = pool.submit(processes.run, ReadImageJob("a"), pieces(9), Caller(time.monotonic() + 60, lambda: True))
        with pytest.raises(DeadlineExceeded):
            late.result(60)
        with pytest.raises(ClientClosed):
            gone.result(60)
        hold.set()
        for request in requests:
            request.result(60)
    assert order == [0, 1, 2, 3]


def test_a_body_that_breaks_off_leaves_its_process_usable(processes: InputProcesses) -> None:
    (pid,) = processes.pids

    def broken() -> Iterator[bytes]:
        yield b"{"
        raise BadRequest("incomplete_body", "the body ended")

    with pytest.raises(BadRequest):
        processes.run(ReadRequestJob(False, "/score"), broken(), later(60))
    assert processes.run(ReadImageJob("a"), [png(SMALL)], later(60)).shape[0] == 3
    assert processes.pids == [pid]


@pytest.mark.parametrize(("mode", "format"), [("RGB", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("RGB", "WEBP")])
def test_a_picture_of_49_megapixels_leaves_no_memory_behind(processes: InputProcesses, mode: str, format: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (7000, 7000)).save(file, format)
    (pid,) = processes.pids
    before = resident_mib(pid)
    processes.run(ReadImageJob("a"), [file.getvalue()], later(120))
    assert resident_mib(pid) - before < 50
    assert peak_mib(pid) - before < 700


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def peak_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def test_one_process_serves_four_cores_up_to_four_processes() -> None:
    assert [default_num_processes(cores) for cores in (1, 2, 4, 8, 16, 64)] == [1, 1, 1, 2, 4, 4]


def test_base64_of_a_picture_above_the_limit_gets_413(scorer: Scorer) -> None:
    response = score(scorer, "?", base64.b64encode(bytes(21 * 2**20)).decode())
    assert (response.status, error_of(response)["code"]) == (413, "image_too_large")
