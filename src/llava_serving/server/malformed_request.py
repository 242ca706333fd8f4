"""The answers to requests that gunicorn cannot parse, as the service's error object instead of a page of HTML."""

import contextlib
import socket

from gunicorn.http import errors

from .client_connection import error_response

# gunicorn raises them for its own responses and settings, which are no fault of the client.
OWN_ERRORS = (errors.InvalidResponseHeader, errors.InvalidResponseHeaderName, errors.ConfigurationProblem)
# By gunicorn's exception: the status and the error code. The base class is the last one.
MALFORMED: dict[type[BaseException], tuple[int, str]] = {
    errors.LimitRequestLine: (414, "request_line_too_long"),
    errors.LimitRequestHeaders: (431, "headers_too_large"),
    errors.ExpectationFailed: (417, "unsupported_expectation"),
    errors.UnsupportedTransferCoding: (501, "unsupported_transfer_coding"),
    errors.ForbiddenProxyRequest: (403, "proxy_not_allowed"),
    errors.ParseException: (400, "malformed_request"),
}


def answer_malformed(client: socket.socket, error: BaseException) -> bool:
    """Answers a request that is not HTTP. Returns False if the error is another one."""
    if isinstance(error, OWN_ERRORS) or not isinstance(error, errors.ParseException):
        return False
    status, code = next(answer for kind, answer in MALFORMED.items() if isinstance(error, kind))
    with contextlib.suppress(OSError):
        client.sendall(error_response(status, code, "the request is not HTTP/1.1 as this server accepts it"))
    return True
