"""The time until a busy endpoint is asked again."""

import random

import urllib3

MAX_RETRY_DELAY_SECONDS = 60.0


def retry_delay(response: urllib3.BaseHTTPResponse, attempt: int) -> float:
    """Returns seconds: those of Retry-After, or else a random delay that grows with `attempt`.

    The delay is random so that clients which were refused together do not all come back together.
    """
    try:
        if (retry_after := response.headers.get("Retry-After")) is not None:
            return urllib3.Retry().parse_retry_after(retry_after)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        pass
    return min(2.0**attempt, MAX_RETRY_DELAY_SECONDS) * random.uniform(0.5, 1.0)
