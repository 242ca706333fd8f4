"""The bytes of a request, for callers that send only a part of them or close at once."""

from .caller import Request


def raw_head(request: Request) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(request.body)}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def raw_bytes(request: Request) -> bytes:
    return raw_head(request) + request.body
