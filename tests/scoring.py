"""A Scorer in this process, and requests to it."""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics.export import MetricReader
from PIL import Image
from server import as_base64

from llava_serving.api.http import HttpRequest, HttpResponse
from llava_serving.service.engine_builder import build_engine
from llava_serving.service.intake_builder import build_intake
from llava_serving.service.metrics import Metrics
from llava_serving.service.request_log import RequestLog
from llava_serving.service.scorer import Scorer
from llava_serving.settings import Settings
from llava_serving.weights.loader import LoadedModel

PICTURE = as_base64(Image.new("RGB", (40, 30), "red"))


@contextmanager
def running_scorer(loaded: LoadedModel, readers: Iterable[MetricReader] = (), **settings: Any) -> Iterator[Scorer]:
    """Yields a scorer whose engine runs until the end of the block. `readers` get its metrics."""
    all_settings = Settings(**settings)
    engine = build_engine(loaded, all_settings)
    engine.start()
    intake = build_intake(loaded, all_settings)
    yield Scorer(all_settings, loaded, engine, intake, RequestLog(Metrics(engine.stats, readers)))
    engine.stop()
    intake.stop()


def score(scorer: Scorer, text: str = "a", image: Any = None, **parameters: Any) -> HttpResponse:
    """Sends a request of one prompt. `image` is the item of `images`: base64, a list of base64, or None."""
    return score_body(scorer, {"input_data": {"input_string": [text], "images": [image], "parameters": parameters}})


def score_body(scorer: Scorer, body: Any, headers: dict[str, str] | None = None) -> HttpResponse:
    """Sends a POST, with a `body` of bytes as it is and any other as JSON."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return scorer.score(HttpRequest("POST", headers or {}, io.BytesIO(encoded)))


def text_of(response: HttpResponse) -> str:
    """Returns the text of the first prompt's first sequence."""
    assert response.status == 200, response.body
    return str(json.loads(response.body)[0]["0"])


def error_of(response: HttpResponse) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(response.body)["error"]
    return error
