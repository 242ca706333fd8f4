"""Where answers come from: an endpoint of the service, or a model that this process loads."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..client.answer_texts import answer_texts
from ..client.credentials import KEY_VARIABLE, entra_token
from ..client.endpoint import Endpoint
from ..client.endpoint_error import EndpointError
from ..errors import RequestError, StartupError

# The service refuses the question itself: it is too long, or its picture is no picture. Others go on.
REFUSALS = (400, 413, 422)


class QuestionRefused(Exception):
    """The service refuses one question. The message says why."""


@dataclass(frozen=True)
class AnswerSource:
    """Answers requests of the service's first form.

    `answer` returns the JSON value of the answer to a body. It raises EndpointError or RequestError. `stop` makes calls
    in other threads end soon. `model` names the source in answers.
    """

    model: str
    concurrency: int
    answer: Callable[[dict[str, Any]], Any]
    stop: Callable[[], None]

    def text(self, body: dict[str, Any]) -> str:
        """Returns the text of the answer to a body with one prompt. Raises QuestionRefused if it is refused."""
        try:
            return answer_texts(self.answer(body))[0][0]
        except (EndpointError, RequestError) as error:
            if error.status in REFUSALS:
                raise QuestionRefused(error.message) from None
            raise


def endpoint_source(url: str, uses_entra: bool, concurrency: int) -> AnswerSource:
    """Returns the source that asks an endpoint, with the key of the environment.

    Raises StartupError for a wrong URL.
    """
    try:
        endpoint = Endpoint(url, entra_token if uses_entra else os.environ.get(KEY_VARIABLE) or None, retries=8)
    except ValueError as error:
        raise StartupError(str(error)) from None
    return AnswerSource(url, concurrency, lambda body: endpoint.score(body).body, endpoint.abort)


def local_source(model_dir: Path, concurrency: int | None) -> AnswerSource:
    """Returns the source that loads a model folder as the service does, and answers in this process.

    `concurrency` None is as many as the engine takes. Raises StartupError.
    """
    if not model_dir.is_dir():
        raise StartupError(f"there is no folder {model_dir}")
    os.environ["AZUREML_MODEL_DIR"] = str(model_dir)
    # Imported here, because torch takes seconds to import. Other sources and wrong arguments need not wait for it.
    from ..service.startup import start
    from ..settings import Settings

    scorer = start()
    return AnswerSource(
        model=str(model_dir.resolve()),
        concurrency=concurrency or Settings.from_environment(os.environ).max_live_seqs,
        answer=lambda body: scorer.answer(json.dumps(body).encode()),
        stop=lambda: scorer.drain(0.0),
    )
