"""Every failure the service tells somebody about.

    StartupError             init() refuses to serve: settings, model directory, weights, self-check
    RequestError             one request is refused, the next is unharmed
    |- BadRequest            400  malformed, unknown, out of range, undecodable
    |- MethodNotAllowed      405
    |- TooLarge              413  body or image over the limit
    |- UnsupportedMediaType  415
    |- ContextExceeded       422  prompt + images + max_new_tokens do not fit
    |- InternalError         500  our bug; the cause is in the log, never in the answer

`answer.py` is the one place that turns a RequestError into JSON.
"""


class StartupError(Exception):
    """The service must not start; the message says what was looked for, what was found and what to do."""


class RequestError(Exception):
    """A refused request.

    `code` is for programs, `message` for people; `param` is the path of the offending part
    (`input_data.images[1]`), None when it is the request as a whole.
    """

    status: int = 500

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class BadRequest(RequestError):
    status = 400


class MethodNotAllowed(RequestError):
    status = 405


class TooLarge(RequestError):
    status = 413


class UnsupportedMediaType(RequestError):
    status = 415


class ContextExceeded(RequestError):
    status = 422


class InternalError(RequestError):
    status = 500
