"""Fetching an image by URL, for operators who allow it: a request must not make the service a door into its network.

Only https on port 443, only hosts the operator listed, no redirects, and only if every address the name resolves to
is public. The connection goes to the address that was checked, so a second DNS answer cannot change it.
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

UrlFetcher = Callable[[str, int], bytes]  # (url, most bytes) -> the body

CHUNK_BYTES = 64 * 1024

# The one range of IPv6 that is given out, less 6to4, whose addresses hold an IPv4 address that may be private.
IPV6_UNICAST = ipaddress.IPv6Network("2000::/3")
IPV6_6TO4 = ipaddress.IPv6Network("2002::/16")
AZURE_HOST = ipaddress.IPv4Address("168.63.129.16")  # public by its number, and the machine below every Azure VM


def resolve(host: str) -> list[str]:
    """The addresses of a name, IPv4 and IPv6."""
    return [str(info[4][0]) for info in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def connect(host: str, address: str, timeout_seconds: float) -> HTTPSConnection:
    """A connection to `address`, not yet opened, on which the certificate must be `host`'s."""
    return HTTPSConnection(address, 443, timeout=timeout_seconds, server_hostname=host)


class AllowListFetcher:
    """Fetches from the listed hosts; `resolve` and `connect` are parameters so that tests need no public host."""

    def __init__(
        self,
        hosts: tuple[str, ...],
        timeout_seconds: float,
        resolve: Callable[[str], list[str]] = resolve,
        connect: Callable[[str, str, float], HTTPSConnection] = connect,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._timeout_seconds = timeout_seconds
        self._resolve = resolve
        self._connect = connect

    def __call__(self, url: str, max_bytes: int) -> bytes:
        deadline = time.monotonic() + self._timeout_seconds
        host, target = self._checked(url)
        connection = self._connect(host, self._public_address(host), self._timeout_seconds)
        try:
            with closing(connection):
                connection.connect()
                with _cut_off(connection.sock, deadline):
                    body = _get(connection, host, target, max_bytes)
        except (HTTPError, HTTPException, OSError) as error:
            reason = "too slow" if time.monotonic() >= deadline else type(error).__name__
            raise BadRequest("image_url_failed", f"the image could not be fetched from {host} ({reason})") from None
        if time.monotonic() >= deadline:  # cut off, which can look like the end of the body
            raise BadRequest("image_url_failed", f"the image could not be fetched from {host} (too slow)")
        return body

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
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return host, quote(target, safe=string.punctuation)

    def _public_address(self, host: str) -> str:
        try:
            addresses = self._resolve(host)
        except (OSError, UnicodeError):
            raise BadRequest("image_url_failed", f"the host {host} does not resolve") from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise BadRequest("image_url_not_allowed", f"the host {host} does not resolve to public addresses alone")
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is a host's on the internet, and leads to no other address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in IPV6_UNICAST and ip not in IPV6_6TO4 and ip.is_global
    return ip.is_global and not ip.is_multicast and ip != AZURE_HOST


@contextmanager
def _cut_off(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Ends a connection at the deadline.

    A socket's timeout starts anew with every byte, so a server that sends one now and then would never meet it.
    """

    def cut() -> None:
        with suppress(OSError):
            # Not the method of the TLS socket, which would change what the reading thread is using.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
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
                "image_url_failed", f"fetching the image answered {response.status}; redirects are not followed"
            )
        body = bytearray()
        for chunk in response.stream(CHUNK_BYTES):
            body += chunk
            if len(body) > max_bytes:
                raise TooLarge("image_too_large", f"the image has more than the {max_bytes:,} bytes that are accepted")
        return bytes(body)
