"""The time until a busy endpoint is asked again."""

import random

import urllib3

MAX_RETRY_DELAY_SECONDS = 60.0


def retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Returns the seconds of a response's Retry-After, or None without a valid one."""
    try:
        if (header := response.headers.get("Retry-After")) is not None:
            return urllib3.Retry().parse_retry_after(header)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        pass
    return None


def retry_delay(attempt: int) -> float:
    """Returns seconds for an endpoint that names none: a random delay that grows with `attempt`.

    The delay is random so that clients which were refused together do not all come back together.
    """
    return min(2.0**attempt, MAX_RETRY_DELAY_SECONDS) * random.uniform(0.5, 1.0)
