"""Fetches images by URL, if the operator allows it, so that no request can reach the network behind the service.

Fetches only by https on port 443, only from hosts that the operator listed, and only if every address of the host is
public. Follows no redirects. Connects to an address that was checked, so a second DNS answer cannot change it.
"""

import ipaddress
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPException
from urllib.parse import quote, urlsplit

from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError

from ..errors import BadRequest, TooLarge

UrlFetcher = Callable[[str, int], bytes]  # (url, max_bytes) -> the body

CHUNK_BYTES = 64 * 1024

# IPv6 hands out public addresses only from this range. Its 6to4 addresses contain an IPv4 address that may be private.
IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
IPV6_6TO4 = ipaddress.IPv6Network("2002::/16")
# Looks public, but is the host of every Azure virtual machine.
AZURE_HOST = ipaddress.IPv4Address("168.63.129.16")


def resolve(host: str) -> list[str]:
    """Returns the IPv4 and IPv6 addresses of a host."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def create_connection(host: str, address: str, timeout_seconds: float) -> HTTPSConnection:
    """Returns a connection to `address`, not yet opened. The server's certificate must be for `host`."""
    return HTTPSConnection(address, 443, timeout=timeout_seconds, server_hostname=host)


class AllowListFetcher:
    """Fetches from the listed hosts. Tests pass `resolve` and `create_connection`, and need no public host."""

    def __init__(
        self,
        hosts: tuple[str, ...],
        timeout_seconds: float,
        resolve: Callable[[str], list[str]] = resolve,
        create_connection: Callable[[str, str, float], HTTPSConnection] = create_connection,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._timeout_seconds = timeout_seconds
        self._resolve = resolve
        self._create_connection = create_connection

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """Returns the body of `url`. Raises BadRequest or TooLarge."""
        deadline = time.monotonic() + self._timeout_seconds
        host, target = self._split(url)
        connection = self._create_connection(host, self._public_address(host), self._timeout_seconds)
        try:
            with closing(connection):
                connection.connect()
                with _shutdown_at(connection.sock, deadline):
                    body = _get(connection, host, target, max_bytes)
        except (HTTPError, HTTPException, OSError) as error:
            reason = "too slow" if time.monotonic() >= deadline else type(error).__name__
            raise BadRequest("image_url_failed", f"the image could not be fetched from {host} ({reason})") from None
        if time.monotonic() >= deadline:  # a shutdown can look like the end of the body
            raise BadRequest("image_url_failed", f"the image could not be fetched from {host} (too slow)")
        return body

    def _split(self, url: str) -> tuple[str, str]:
        """Returns the host and the request target of a URL that is allowed."""
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
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return host, quote(target, safe=string.punctuation)

    def _public_address(self, host: str) -> str:
        try:
            addresses = self._resolve(host)
        except (OSError, UnicodeError):
            raise BadRequest("image_url_failed", f"the host {host} does not resolve") from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise BadRequest(
                "image_url_not_allowed", f"the host {host} must resolve to public addresses only, and does not"
            )
        return addresses[0]


def too_many_bytes(max_bytes: int) -> TooLarge:
    """Returns the error about an image file, fetched or sent, of more than `max_bytes`."""
    return TooLarge("image_too_large", f"the image has more than the {max_bytes:,} bytes that are accepted")


def is_public(address: str) -> bool:
    """Returns whether an address belongs to one host on the internet and contains no other address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in IPV6_UNICAST and ip not in IPV6_6TO4 and ip.is_global
    return ip.is_global and not ip.is_multicast and ip != AZURE_HOST


@contextmanager
def _shutdown_at(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Shuts the connection down at the deadline, if the block still runs then.

    A socket's timeout starts again with every byte, so a server that sends a byte now and then would never reach it.
    """

    def shut_down() -> None:
        with suppress(OSError):
            # The method of the TLS socket would change the state that the reading thread uses.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _get(connection: HTTPSConnection, host: str, target: str, max_bytes: int) -> bytes:
    headers = {"Host": host, "Accept-Encoding": "identity"}
    connection.request("GET", target, headers=headers, preload_content=False, decode_content=False)
    with closing(connection.getresponse()) as response:
        if response.status != 200:
            raise BadRequest(
                "image_url_failed",
                f"the image's server answered with status {response.status}; redirects are not followed",
            )
        body = bytearray()
        for chunk in response.stream(CHUNK_BYTES):
            body += chunk
            if len(body) > max_bytes:
                raise too_many_bytes(max_bytes)
        return bytes(body)
