"""The errors of this service.

    StartupError             the service or a command does not start: settings, model folder, weights, self-check
    RequestError             one request is refused; other requests go on
    |- BadRequest            400  malformed, unknown, out of range, undecodable
    |- NotFound              404  no such model
    |- MethodNotAllowed      405
    |- RequestTimeout        408  the body did not arrive
    |- TooLarge              413  body or image over the limit
    |- UnsupportedMediaType  415
    |- ContextExceeded       422  prompt, images and max_new_tokens do not fit into the context
    |- Overloaded            429  the queue is full; `retry_after` says when to try again
    |- ClientClosed          499  the client disconnected; only the request log and the metrics show this error
    |- InternalError         500  a bug of the service; the log has the cause, the response never has it
    |- Unavailable           503  the service is draining or unhealthy
    |- DeadlineExceeded      504  no token was generated before the deadline

`api/response.py` turns a RequestError into JSON.
"""


class StartupError(Exception):
    """The service or a command must not start. The message says what was expected, what was found and what to do."""


class RequestError(Exception):
    """A refused request.

    Programs read `code`, and people read `message`. `param` is the path of the offending part, for example
    `input_data.images[1]`; it is None if the error is about the whole request. `retry_after` is in seconds.
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


class NotFound(RequestError):
    status = 404


class MethodNotAllowed(RequestError):
    """`allowed` is the method that the path accepts."""

    status = 405

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__("method_not_allowed", f"{method} is not accepted here; send {allowed}")
        self.allowed = allowed


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
