"""The time until a request is sent again."""

import random

import urllib3

MAX_JITTER_SECONDS = 10.0


def retry_after(response: urllib3.BaseHTTPResponse) -> float | None:
    """Returns the seconds of a response's Retry-After, or None without a valid one."""
    try:
        if (header := response.headers.get("Retry-After")) is not None:
            return urllib3.Retry().parse_retry_after(header)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        pass
    return None


def retry_delay(attempt: int, minimum: float | None) -> float:
    """Returns seconds to wait after attempt number `attempt`, counted from 0: `minimum` and a random time.

    `minimum` is the endpoint's Retry-After, if it sent one. The random time is uniform between 0 and a limit that
    doubles with each attempt ("full jitter" of Marc Brooker's "Exponential Backoff And Jitter"), also after
    Retry-After: clients that were refused together do not all come back together.
    """
    limit = min(1 << attempt, MAX_JITTER_SECONDS)
    return (minimum or 0.0) + random.uniform(0.0, limit)
