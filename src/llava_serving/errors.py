"""Every failure the service tells somebody about.

    StartupError             init() refuses to serve: settings, model directory, weights, self-check
    RequestError             one request is refused, the next is unharmed
    |- BadRequest            400  malformed, unknown, out of range, undecodable
    |- MethodNotAllowed      405
    |- RequestTimeout        408  the body did not come
    |- TooLarge              413  body or image over the limit
    |- UnsupportedMediaType  415
    |- ContextExceeded       422  prompt + images + max_new_tokens do not fit
    |- Overloaded            429  the queue is full; `retry_after` says when to come again
    |- ClientClosed          499  nobody waits any more: for the log, no caller sees it
    |- InternalError         500  our bug; the cause is in the log, never in the answer
    |- Unavailable           503  draining or unhealthy
    |- DeadlineExceeded      504  no answer in the time there was

`answer.py` is the one place that turns a RequestError into JSON.
"""


class StartupError(Exception):
    """The service must not start; the message says what was looked for, what was found and what to do."""


class RequestError(Exception):
    """A refused request.

    `code` is for programs, `message` for people; `param` is the path of the offending part
    (`input_data.images[1]`), None when it is the request as a whole. `retry_after` is in seconds.
    """

    status: int = 500

    def __init__(self, code: str, message: str, param: str | None = None, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after


class BadRequest(RequestError):
    status = 400


class MethodNotAllowed(RequestError):
    status = 405


class RequestTimeout(RequestError):
    status = 408


class TooLarge(RequestError):
    status = 413


class UnsupportedMediaType(RequestError):
    status = 415


class ContextExceeded(RequestError):
    status = 422


class Overloaded(RequestError):
    status = 429


class ClientClosed(RequestError):
    status = 499


class InternalError(RequestError):
    status = 500


class Unavailable(RequestError):
    status = 503


class DeadlineExceeded(RequestError):
    status = 504
