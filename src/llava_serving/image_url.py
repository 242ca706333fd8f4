"""Fetching an image by URL, for operators who allow it: a request must not make the service a door into its network.

Only https on port 443, only hosts the operator listed, no redirects, and only if every address the name resolves to
is public. The connection goes to the address that was checked, so a second DNS answer cannot change it.
"""

import ipaddress
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import urllib3

from .errors import BadRequest, TooLarge

UrlFetcher = Callable[[str, int], bytes]  # (url, most bytes) -> the body

CHUNK_BYTES = 64 * 1024


def resolve(host: str) -> list[str]:
    """The addresses of a name, IPv4 and IPv6."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def connect(host: str, address: str) -> urllib3.HTTPSConnectionPool:
    """A connection to `address` on which the certificate must be `host`'s."""
    return urllib3.HTTPSConnectionPool(address, 443, server_hostname=host, assert_hostname=host, retries=False)


class AllowListFetcher:
    """Fetches from the listed hosts; `resolve` and `connect` are parameters so that tests need no public host."""

    def __init__(
        self,
        hosts: tuple[str, ...],
        timeout_seconds: float,
        resolve: Callable[[str], list[str]] = resolve,
        connect: Callable[[str, str], urllib3.HTTPSConnectionPool] = connect,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._timeout_seconds = timeout_seconds
        self._resolve = resolve
        self._connect = connect

    def __call__(self, url: str, max_bytes: int) -> bytes:
        deadline = time.monotonic() + self._timeout_seconds
        host, target = self._checked(url)
        address = self._public_address(host)
        try:
            with self._connect(host, address) as pool:
                response = pool.request(
                    "GET",
                    target,
                    headers={"Host": host, "Accept-Encoding": "identity"},
                    redirect=False,
                    preload_content=False,
                    timeout=urllib3.Timeout(total=self._timeout_seconds),
                )
                if response.status != 200:
                    raise BadRequest(
                        "image_url_failed", f"fetching the image answered {response.status}; redirects are not followed"
                    )
                return _body(response, max_bytes, deadline)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BadRequest(
                "image_url_failed", f"the image could not be fetched from {host} ({type(error).__name__})"
            ) from None

    def _checked(self, url: str) -> tuple[str, str]:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            raise BadRequest("image_url_not_allowed", "the image URL cannot be parsed") from None
        if parts.scheme != "https" or port not in (None, 443) or parts.username or parts.password:
            raise BadRequest("image_url_not_allowed", "image URLs must be https, on port 443, without credentials")
        if host not in self._hosts:
            raise BadRequest(
                "image_url_not_allowed",
                f"images are not fetched from {host!r}; this deployment allows {', '.join(sorted(self._hosts))}",
            )
        return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def _public_address(self, host: str) -> str:
        try:
            addresses = self._resolve(host)
        except OSError:
            raise BadRequest("image_url_failed", f"the host {host} does not resolve") from None
        if not addresses or not all(ipaddress.ip_address(address).is_global for address in addresses):
            raise BadRequest("image_url_not_allowed", f"the host {host} does not resolve to public addresses alone")
        return addresses[0]


def _body(response: urllib3.BaseHTTPResponse, max_bytes: int, deadline: float) -> bytes:
    body = bytearray()
    for chunk in response.stream(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise TooLarge("image_too_large", f"the image has more than the {max_bytes:,} bytes that are accepted")
        if time.monotonic() > deadline:
            raise BadRequest("image_url_failed", "fetching the image took too long")
    return bytes(body)
