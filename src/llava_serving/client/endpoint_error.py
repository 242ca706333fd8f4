"""An endpoint that did not answer: what it says, in this service's shape or the platform's, and when to come again."""

import json
import random
from typing import Any
from urllib.parse import urlsplit

import urllib3

# Azure's own: the container answered with another status, which it tells in a header.
MODEL_ERROR, MODEL_STATUS = 424, "ms-azureml-model-error-statuscode"
LONGEST_WAIT = 60.0  # seconds; who is told to wait longer gets the error


class EndpointError(Exception):
    """The endpoint did not answer. `status` is the service's own where Azure answers 424 for it, and None where there
    was none: no connection, or a stream that ended with an error."""

    def __init__(self, status: int | None, code: str, message: str) -> None:
        told = " ".join(filter(None, (str(status or ""), code)))
        super().__init__(f"{told}: {message}" if told else message)
        self.status = status
        self.code = code
        self.message = message


def wait(response: urllib3.BaseHTTPResponse, attempt: int) -> float:
    """Seconds: as the answer says, else longer each time, and never all callers at once."""
    try:
        if (after := response.headers.get("Retry-After")) is not None:
            return urllib3.Retry().parse_retry_after(after)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        pass
    return min(2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)


def refusal(response: urllib3.BaseHTTPResponse, url: str) -> EndpointError:
    """What the body says, in this service's shape or the platform's, with the service's own status where Azure tells
    it."""
    own = response.headers.get(MODEL_STATUS, "")
    status = int(own) if response.status == MODEL_ERROR and own.isdecimal() else response.status
    try:
        text = response.data.decode("utf-8", "replace")
    except urllib3.exceptions.HTTPError:
        text = ""
    try:
        content = json.loads(text)
        code, message = told(content.get("error", content), text)
    except (ValueError, AttributeError):
        code, message = "", text[:500] or response.reason or ""
    hint = "" if urlsplit(url).path.rstrip("/") else " (a scoring URI ends in /score)"
    return EndpointError(status, code, message + hint)


def told(error: Any, text: str) -> tuple[str, str]:
    """Code and message of an error in this service's shape; of another `text`."""
    if not isinstance(error, dict):
        return "", text
    return str(error.get("code", "")), str(error.get("message", text))
