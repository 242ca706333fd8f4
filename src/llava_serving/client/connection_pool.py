"""HTTP connections to an endpoint, directly or through the environment's proxy."""

import contextlib
import http.client
import socket
import urllib.request
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection


def connection_pool(url: str) -> urllib3.PoolManager:
    """Returns a pool for `url` that uses the proxy of the environment, if the environment names one for `url`.

    Raises ValueError if urllib3 does not support the proxy.
    """
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return urllib3.PoolManager(retries=False)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    login = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(login)) if login else None
    try:
        return urllib3.ProxyManager(proxy, proxy_headers=headers, retries=False)
    except urllib3.exceptions.HTTPError:
        raise ValueError(f"the environment's proxy for {parts.scheme} is not supported") from None


def track_connections(pool: urllib3.HTTPConnectionPool) -> "weakref.WeakSet[HTTPConnection]":
    """Returns a set that will hold every connection of `pool` that is in use or kept for the next request.

    A request on these connections raises urllib3's ProtocolError around a ConnectionError only if the connection ends
    before the first byte of the response.
    """
    connections: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
    new_connection: Callable[..., Any] = pool.ConnectionCls

    def tracked(*arguments: Any, **options: Any) -> HTTPConnection:
        connection: HTTPConnection = new_connection(*arguments, **options)
        connection.response_class = _Response
        connections.add(connection)
        return connection

    pool.ConnectionCls = tracked  # type: ignore[assignment]
    return connections


class _Response(http.client.HTTPResponse):
    """A response that tells a connection which ends before the response from one which ends within its head."""

    def begin(self) -> None:
        """Reads the head. Raises ConnectionError without a first byte, and IncompleteRead for the rest of the head."""
        if not self.fp.peek(1):
            raise http.client.RemoteDisconnected("the connection was closed without a response")
        try:
            super().begin()
        except ConnectionError as error:
            raise http.client.IncompleteRead(b"") from error


def cut(connection: HTTPConnection) -> None:
    """Ends both directions of a connection. A read in another thread then returns at once."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # the connection has ended already
            connection.sock.shutdown(socket.SHUT_RDWR)
