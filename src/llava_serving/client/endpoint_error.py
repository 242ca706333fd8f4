"""The error of an endpoint that did not answer, in this service's JSON or in the platform's."""

import json
from typing import Any
from urllib.parse import urlsplit

import urllib3

from .retry_delay import retry_after
from .transient_failures import is_transient_response

# Azure answers 424 if the container answered with an error, and puts the container's status into this header.
MODEL_ERROR_STATUS = 424
MODEL_STATUS_HEADER = "ms-azureml-model-error-statuscode"


class EndpointError(Exception):
    """The endpoint did not answer.

    `status` is the HTTP status. Where Azure wraps a status of the service in 424, `status` is the service's. It is None
    without a connection, and for a stream that ended with an error. `retry_after`: seconds of Retry-After, or None.
    `is_transient`: the same request may be sent again, and may succeed (transient_failures.py says when).
    """

    def __init__(
        self,
        status: int | None,
        code: str,
        message: str,
        retry_after: float | None = None,
        *,
        is_transient: bool = False,
    ) -> None:
        prefix = " ".join(filter(None, (str(status or ""), code)))
        super().__init__(f"{prefix}: {message}" if prefix else message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after = retry_after
        self.is_transient = is_transient


def error_from_response(response: urllib3.BaseHTTPResponse, url: str) -> EndpointError:
    """Returns the error that a response other than 200 describes. Reads the response's body."""
    model_status = response.headers.get(MODEL_STATUS_HEADER, "")
    has_model_status = response.status == MODEL_ERROR_STATUS and model_status.isdecimal()
    status = int(model_status) if has_model_status else response.status
    try:
        text = response.data.decode("utf-8", "replace")
    except urllib3.exceptions.HTTPError:
        text = ""
    error = _error_value(text)
    code, message = code_and_message(error, text[:500] or response.reason or "")
    hint = "" if urlsplit(url).path.rstrip("/") else " (a scoring URI ends in /score)"
    is_transient = is_transient_response(status, error)
    return EndpointError(status, code, message + hint, retry_after(response), is_transient=is_transient)


def _error_value(text: str) -> Any:
    """Returns the value of `error` in a JSON object, the object if it has none, or None if `text` is no JSON object."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    return content.get("error", content) if isinstance(content, dict) else None


def code_and_message(error: Any, text: str) -> tuple[str, str]:
    """Returns code and message of an error object, or "" and `text` if `error` is not an object."""
    if not isinstance(error, dict):
        return "", text
    return str(error.get("code", "")), str(error.get("message", text))
