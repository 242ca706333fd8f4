"""Where answers come from: an endpoint of the service, or a model that this process loads."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...client.answer_texts import answer_texts
from ...client.credentials import KEY_VARIABLE, entra_token
from ...client.endpoint import Endpoint
from ...client.endpoint_error import EndpointError
from ...errors import RequestError, StartupError

# A busy endpoint refuses callers beyond its queue again and again: more callers than places only wait.
RETRIES = 100
RETRY_SECONDS = 1800.0
CONTEXT_EXCEEDED, LIMIT = "context_length_exceeded", "max_new_tokens"


@dataclass(frozen=True)
class AnswerSource:
    """Answers requests of the service's first form.

    `answer` returns the JSON value of the answer to a body. It raises EndpointError or RequestError. `stop` makes calls
    in other threads end soon. `model` names the source in answers, and is a part of their keys.
    """

    model: str
    concurrency: int
    answer: Callable[[dict[str, Any]], Any]
    stop: Callable[[], None]

    def text(self, body: dict[str, Any]) -> str:
        """Returns the text of the answer to a body with one prompt. Raises EndpointError or RequestError.

        If the model's context does not hold the tokens that the body allows, the service decides how many it answers.
        """
        try:
            answer = self.answer(body)
        except (EndpointError, RequestError) as error:
            if error.code != CONTEXT_EXCEEDED or LIMIT not in body["input_data"].get("parameters", ()):
                raise
            answer = self.answer(_without_limit(body))
        try:
            return answer_texts(answer)[0][0]
        except (ValueError, IndexError):
            raise EndpointError(200, "", "the answer is not one of this service") from None


def _without_limit(body: dict[str, Any]) -> dict[str, Any]:
    data = body["input_data"]
    parameters = {name: value for name, value in data["parameters"].items() if name != LIMIT}
    return {**body, "input_data": {**data, "parameters": parameters}}


def endpoint_source(url: str, uses_entra: bool, concurrency: int, model: str | None = None) -> AnswerSource:
    """Returns the source that asks an endpoint, with the key of the environment. `model` None is the URL.

    Raises StartupError for a wrong URL.
    """
    token = entra_token if uses_entra else os.environ.get(KEY_VARIABLE) or None
    try:
        endpoint = Endpoint(url, token, retries=RETRIES, retry_seconds=RETRY_SECONDS)
    except ValueError as error:
        raise StartupError(str(error)) from None
    return AnswerSource(model or url, concurrency, lambda body: endpoint.score(body).body, endpoint.abort)


def local_source(model_dir: Path, concurrency: int | None, model: str | None = None) -> AnswerSource:
    """Returns the source that loads a model folder as the service does, and answers in this process.

    A service in a process of its own would outlive this one when this one is killed. `concurrency` None is as many as
    the engine takes. Raises StartupError.
    """
    if not model_dir.is_dir():
        raise StartupError(f"there is no folder {model_dir}")
    os.environ["AZUREML_MODEL_DIR"] = str(model_dir)
    # Imported here, because torch takes seconds to import. Other sources and wrong arguments need not wait for it.
    from ...service.startup import start
    from ...settings import Settings
    from ...weights.model_folder import find_model
    from ...weights.storage.fingerprint import folders_digest

    settings = Settings.from_environment(os.environ)
    scorer = start()
    # Another dtype, or other weights in the same folder, are another model: its answers are asked anew.
    options = (scorer.model.template.name, str(scorer.model.model.dtype), settings.quantization)
    digest = folders_digest(find_model(str(model_dir)).folders, *options)
    name = model or str(model_dir.resolve())
    return AnswerSource(
        model=f"{name} ({', '.join(filter(None, (*options, digest[:12])))})",
        concurrency=concurrency or settings.max_live_seqs,
        answer=lambda body: scorer.answer(json.dumps(body).encode()),
        stop=lambda: scorer.drain(0.0),
    )
