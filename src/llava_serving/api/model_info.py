"""Descriptions of the model: OpenAI's list of models, and the /info of Azure's model catalogue."""

import time
from typing import Any

from ..errors import MethodNotAllowed, NotFound
from .http import HttpRequest
from .paths import INFO, MODELS

MODEL_NAME = "llava"
STARTED = int(time.time())


def asks_for_model_info(request: HttpRequest) -> bool:
    return request.path == INFO or request.path.startswith(MODELS)


def model_info(request: HttpRequest) -> dict[str, Any]:
    """Returns the description at the request's path, a JSON object. Raises MethodNotAllowed or NotFound."""
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed(request.method, "GET")
    if request.path == INFO:
        return {"model_name": MODEL_NAME, "model_type": "chat-completion", "model_provider_name": "llava-serving"}
    model = {"id": MODEL_NAME, "object": "model", "created": STARTED, "owned_by": "llava-serving"}
    if request.path == MODELS:
        return {"object": "list", "data": [model]}
    name = request.path.removeprefix(f"{MODELS}/")
    if name != MODEL_NAME:
        raise NotFound("model_not_found", f"there is no model {name!r}; this endpoint serves {MODEL_NAME!r}", "model")
    return model
