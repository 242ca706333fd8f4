"""Which failures are transient: the same request, sent again, is safe and may succeed.

A request changes nothing in the service, so that an answer which is computed twice costs only work. Transient are:

- a connection that is refused, or that ends before the first byte of a response: a container that restarts, or a kept
  connection that the server closed;
- 429: Azure's limit on concurrent requests, or the service's full queue;
- 503: the service drains or restarts, or Azure has no instance that is ready;
- 502 and 504 of a front end, which does not reach the container.

Not transient are:

- a failure after the first byte of a response: the caller may have used a part of the answer already;
- a time-out of the client: the service may still compute the answer, and a second request adds to its load;
- 504 with the service's own error object: the deadline ended, and the work would be done again in vain;
- 408: the body or the answer needs more time than the limit, and it would need that time again;
- 500: the service failed on this request, and would fail again;
- every other 4xx: the request is wrong, or the key is;
- a host name that does not resolve and a wrong certificate: the URL or the machine must be changed first.
"""

from typing import Any

import urllib3

BUSY_STATUSES = (429, 503)
GATEWAY_STATUSES = (502, 504)
# Azure's own error objects have a code and a message, but not all of these fields.
FIELDS_OF_SERVICE_ERROR = {"code", "message", "param", "type"}


def is_transient_response(status: int, error: Any) -> bool:
    """Returns whether a response other than 200 is transient. `error` is the value of `error` in its JSON, or None."""
    is_from_service = isinstance(error, dict) and error.keys() >= FIELDS_OF_SERVICE_ERROR
    return status in BUSY_STATUSES or (status in GATEWAY_STATUSES and not is_from_service)


def is_transient_connection_error(error: urllib3.exceptions.HTTPError) -> bool:
    """Returns whether an error of `connection_pool`'s connections is transient."""
    if isinstance(error, urllib3.exceptions.ProxyError):
        return isinstance(error.original_error, urllib3.exceptions.HTTPError) and is_transient_connection_error(
            error.original_error
        )
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return isinstance(error.__cause__, ConnectionRefusedError | ConnectionResetError)
    return isinstance(error, urllib3.exceptions.ProtocolError) and isinstance(error.args[-1], ConnectionError)
