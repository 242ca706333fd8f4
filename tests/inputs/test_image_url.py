"""Fetching by URL from a real TLS server on the loopback: refusals, limits, and the address of the connection."""

import datetime
import gzip
import ipaddress
import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from urllib3.connection import HTTPSConnection

from llava_serving.errors import BadRequest, RequestError, TooLarge
from llava_serving.inputs import image_url
from llava_serving.inputs.image import ImageLimits, ImageReader, OpenedImage
from llava_serving.inputs.image_url import AllowListFetcher
from llava_serving.inputs.prompt import ImageSource
from llava_serving.settings import Settings

HOST = "images.example.com"
URL = f"https://{HOST}/cat.png?size=2"
PUBLIC = "93.184.216.34"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\n"
DEADLINE = 0.4  # seconds, for tests that wait for it


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a self-signed certificate for `name` and its key, and returns their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / f"{name}.pem", folder / f"{name}.key"
    pem.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem, key_pem


@dataclass
class TlsServer:
    """Sends every client the chunks of one answer, until the client disconnects."""

    ca_certs: Path
    answer: Callable[[], Iterator[bytes]]
    requests: list[bytes] = field(default_factory=list)
    sent: int = 0
    addresses: list[str] = field(default_factory=list)  # the fetcher's, before the connection is redirected here

    def connect(self, host: str, address: str, timeout_seconds: float) -> HTTPSConnection:
        """Creates the service's own connection, and redirects it to this server."""
        connection = image_url.create_connection(host, address, timeout_seconds)
        assert (connection.host, connection.port) == (address, 443)
        self.addresses.append(address)
        connection.host, connection.port = "127.0.0.1", self.port
        connection.ca_certs = str(self.ca_certs)
        return connection

    def serve(self, context: ssl.SSLContext) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._context = context
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            try:
                with raw, self._context.wrap_socket(raw, server_side=True) as client:
                    client.settimeout(5)
                    self.requests.append(client.recv(65536))
                    for chunk in self.answer():
                        client.sendall(chunk)
                        self.sent += len(chunk)
            except OSError:
                pass  # the client disconnected

    def close(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)):  # wakes accept
            self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


Serve = Callable[..., TlsServer]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("certificates")
    return {name: certificate(folder, name) for name in (HOST, "other.example.com")}


@pytest.fixture
def serve(certificates: dict[str, tuple[Path, Path]]) -> Iterator[Serve]:
    servers = []

    def start(*chunks: bytes, answer: Callable[[], Iterator[bytes]] | None = None, name: str = HOST) -> TlsServer:
        pem, key = certificates[name]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem, key)
        server = TlsServer(pem, answer or (lambda: iter(chunks)))
        server.serve(context)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def fetcher(
    server: TlsServer, timeout_seconds: float = 5.0, addresses: tuple[str, ...] = (PUBLIC,)
) -> AllowListFetcher:
    return AllowListFetcher((HOST,), timeout_seconds, lambda host: list(addresses), server.connect)


def fail_if_called(*args: object) -> None:
    pytest.fail("looked up a name or opened a connection")


def fetch_error(fetch: AllowListFetcher, url: str = URL, max_bytes: int = 1000) -> RequestError:
    with pytest.raises(RequestError) as error_info:
        fetch(url, max_bytes)
    return error_info.value


def ok_response(body: bytes) -> bytes:
    return OK + b"Content-Length: %d\r\n\r\n" % len(body) + body


# Refusals without a connection


def test_no_image_url_host_is_allowed_by_default() -> None:
    assert Settings.from_environment({}).image_url_hosts == ()


@pytest.mark.parametrize("url", [URL, "http://a/b", "HTTPS://A/B", "ftp://a/b", "file:///etc/passwd", "s3:bucket/x"])
def test_a_url_is_refused_with_the_alternatives_if_no_host_is_allowed(url: str) -> None:
    with pytest.raises(BadRequest) as error_info:
        ImageReader(ImageLimits(1000, 1000), None).read(ImageSource(url, "input_data.images[1]"), OpenedImage.decode)
    assert error_info.value.code == "image_url_not_allowed"
    assert error_info.value.param == "input_data.images[1]"
    assert "base64" in error_info.value.message
    assert "data:" in error_info.value.message


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a.png",
        f"ftp://{HOST}/a.png",
        f"file://{HOST}/etc/passwd",
        f"https://{HOST}:8443/a.png",
        f"https://{HOST}:80/a.png",
        f"https://{HOST}:0/a.png",
        f"https://{HOST}:99999/a.png",
        f"https://{HOST}:x/a.png",
        f"https://user@{HOST}/a.png",
        f"https://user:password@{HOST}/a.png",
        f"https://:password@{HOST}/a.png",
        "https://[::1/a.png",
        "https:",
        "https:///a.png",
        f"https:{HOST}/a.png",
        "https://other.example.com/a.png",
        f"https://{HOST}.example.org/a.png",
        f"https://evil{HOST}/a.png",
        f"https://{HOST}@other.example.com/a.png",
        f"https://other.example.com#@{HOST}/a.png",
        f"https://other.example.com\\@{HOST}/a.png",
        f"https://other.example.com?{HOST}",
        f"https://{HOST}./a.png",
        f"https://{PUBLIC}/a.png",
        "https://127.0.0.1/a.png",
        "https://[::1]/a.png",
        "https://localhost/a.png",
    ],
)
def test_a_url_that_is_not_allowed_is_refused_before_any_dns_lookup(url: str) -> None:
    error = fetch_error(AllowListFetcher((HOST,), 1.0, fail_if_called, fail_if_called), url)
    assert (error.status, error.code) == (400, "image_url_not_allowed")


def test_the_error_about_another_host_names_the_allowed_hosts() -> None:
    error = fetch_error(
        AllowListFetcher(("b.example.com", "a.example.com"), 1.0, fail_if_called, fail_if_called),
        "https://c.example.com/",
    )
    assert "'c.example.com'" in error.message
    assert "a.example.com, b.example.com" in error.message


NOT_PUBLIC = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "168.63.129.16",  # Azure's host
    "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1",
    "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:100.64.0.1", "::ffff:a9fe:a9fe",
    "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::10.0.0.1", "2002:a00:1::", "2002:7f00:1::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_an_address_that_is_not_public_is_refused_even_among_public_ones(address: str) -> None:
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        error = fetch_error(AllowListFetcher((HOST,), 1.0, lambda host, resolved=addresses: resolved, fail_if_called))
        assert (error.status, error.code) == (400, "image_url_not_allowed")
        assert HOST in error.message
        assert address not in error.message  # the error says nothing about the operator's network


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "20.50.2.1", "2606:4700:4700::1111", "2a01:111:f403::1"])
def test_a_public_address_is_connected_to(serve: Serve, address: str) -> None:
    server = serve(ok_response(b"bytes"))
    assert fetcher(server, addresses=(address,))(URL, 1000) == b"bytes"
    assert server.addresses == [address]


@pytest.mark.parametrize("failure", [socket.gaierror(8, "no such name"), UnicodeError("label too long")])
def test_a_host_that_does_not_resolve_is_refused(failure: Exception) -> None:
    def resolve(host: str) -> list[str]:
        raise failure

    error = fetch_error(AllowListFetcher((HOST,), 1.0, resolve, fail_if_called))
    assert (error.status, error.code) == (400, "image_url_failed")
    assert HOST in error.message


def test_a_host_without_addresses_is_refused() -> None:
    assert fetch_error(AllowListFetcher((HOST,), 1.0, lambda host: [], fail_if_called)).status == 400


def test_a_host_is_resolved_only_once(serve: Serve) -> None:
    server = serve(ok_response(b"bytes"))
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    assert AllowListFetcher((HOST,), 5.0, lambda host: next(answers), server.connect)(URL, 1000) == b"bytes"
    assert server.addresses == [PUBLIC]
    assert next(answers) == ["127.0.0.1"]


def test_the_connection_has_the_address_the_certificate_name_and_the_timeout() -> None:
    connection = image_url.create_connection(HOST, "2606:4700:4700::1111", 3.0)
    assert (connection.host, connection.port) == ("2606:4700:4700::1111", 443)
    assert (connection.server_hostname, connection.timeout) == (HOST, 3.0)
    assert connection.cert_reqs == ssl.CERT_REQUIRED


def test_a_host_resolves_to_ipv4_and_ipv6_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    infos = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1", 443, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, 443)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, type: infos)
    addresses = image_url.resolve(HOST)
    assert addresses == ["2606:4700::1", PUBLIC]
    assert [ipaddress.ip_address(address).version for address in addresses] == [6, 4]


# Requests and answers


def test_the_body_is_returned_and_the_request_names_the_host(serve: Serve) -> None:
    body = bytes(range(256)) * 1000
    server = serve(ok_response(body))
    assert fetcher(server)(URL, len(body)) == body
    [request] = server.requests
    lines = request.decode("ascii").split("\r\n")
    assert lines[0] == "GET /cat.png?size=2 HTTP/1.1"
    assert [line for line in lines if line.lower().startswith("host:")] == [f"Host: {HOST}"]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (f"https://{HOST}", "/"),
        (f"https://{HOST}?a=b", "/?a=b"),
        (f"https://{HOST.upper()}:443/A%20b?c=%2F#fragment", "/A%20b?c=%2F"),
        (f"https://{HOST}//127.0.0.1/x", "//127.0.0.1/x"),
        (f"https://{HOST}/a b/\u00e9?q=\u00fc \x7f", "/a%20b/%C3%A9?q=%C3%BC%20%7F"),
        (f"https://{HOST}/a\r\nX-Header: 1", "/aX-Header:%201"),
    ],
)
def test_any_path_and_query_become_one_request_line(serve: Serve, url: str, target: str) -> None:
    server = serve(ok_response(b"bytes"))
    assert fetcher(server)(url, 1000) == b"bytes"
    assert server.requests[0].split(b"\r\n")[0].decode("ascii") == f"GET {target} HTTP/1.1"
    assert b"\r\nX-Header" not in server.requests[0]


def test_the_chunks_of_a_body_are_joined(serve: Serve) -> None:
    server = serve(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert fetcher(server)(URL, 5) == b"abcde"


def test_a_body_without_a_length_ends_with_the_connection(serve: Serve) -> None:
    assert fetcher(serve(OK + b"\r\n", b"abc", b"de"))(URL, 5) == b"abcde"


@pytest.mark.parametrize("status", [201, 204, 301, 302, 304, 307, 308, 401, 403, 404, 429, 500, 503])
def test_a_status_other_than_200_is_refused(serve: Serve, status: int) -> None:
    server = serve(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
    error = fetch_error(fetcher(server))
    assert (error.status, error.code) == (400, "image_url_failed")
    assert str(status) in error.message


def test_a_redirect_is_not_followed(serve: Serve) -> None:
    server = serve(
        b"HTTP/1.1 302 Found\r\nLocation: https://169.254.169.254/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
    assert "redirects are not followed" in fetch_error(fetcher(server)).message
    assert len(server.requests) == len(server.addresses) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        OK + b"Content-Length: 100\r\n\r\nshort",
        OK + b"Content-Length: 3, 4\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ],
)
def test_an_answer_that_is_not_valid_http_is_refused(serve: Serve, answer: bytes) -> None:
    error = fetch_error(fetcher(serve(answer)))
    assert (error.status, error.code) == (400, "image_url_failed")
    assert HOST in error.message


def test_a_host_that_refuses_connections_is_refused(serve: Serve) -> None:
    def connect(host: str, address: str, timeout_seconds: float) -> HTTPSConnection:
        connection = image_url.create_connection(host, address, timeout_seconds)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            connection.host, connection.port = "127.0.0.1", closed.getsockname()[1]
        return connection

    error = fetch_error(AllowListFetcher((HOST,), 5.0, lambda host: [PUBLIC], connect))
    assert (error.status, error.code) == (400, "image_url_failed")


def test_a_certificate_for_another_host_is_refused_before_the_request(serve: Serve) -> None:
    server = serve(ok_response(b"bytes"), name="other.example.com")
    error = fetch_error(fetcher(server))
    assert (error.status, error.code) == (400, "image_url_failed")
    assert not server.requests


def test_a_certificate_from_an_unknown_issuer_is_refused_before_the_request(
    serve: Serve, certificates: dict[str, tuple[Path, Path]]
) -> None:
    server = serve(ok_response(b"bytes"))
    server.ca_certs = certificates["other.example.com"][0]
    error = fetch_error(fetcher(server))
    assert (error.status, error.code) == (400, "image_url_failed")
    assert not server.requests


# Limits


def test_a_body_of_exactly_the_limit_is_accepted_and_a_byte_more_is_not(serve: Serve) -> None:
    server = serve(ok_response(b"x" * 1000))
    assert fetcher(server)(URL, 1000) == b"x" * 1000
    error = fetch_error(fetcher(server), max_bytes=999)
    assert (type(error), error.code) == (TooLarge, "image_too_large")
    assert "999" in error.message


def test_an_endless_body_is_read_no_further_than_the_limit_and_the_buffers(serve: Serve) -> None:
    server = serve(answer=lambda: itertools.chain([OK + b"\r\n"], itertools.repeat(b"x" * 65536, 1000)))
    assert type(fetch_error(fetcher(server), max_bytes=100_000)) is TooLarge
    assert server.sent < 32 * 1024 * 1024  # of the 64 MiB: only what fits into the buffers of the sockets


def test_a_compressed_body_is_not_decompressed(serve: Serve) -> None:
    packed = gzip.compress(bytes(1_000_000))
    server = serve(OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed)
    assert fetcher(server)(URL, len(packed)) == packed


def byte_by_byte(head: bytes) -> Iterator[bytes]:
    """Yields a byte now and then: each arrives well within the time limit, but the whole body never does."""
    yield head
    for _ in range(int(20 / (DEADLINE / 8))):
        time.sleep(DEADLINE / 8)
        yield b"x"


@pytest.mark.parametrize(
    "head",
    [
        b"",  # the status line
        b"HTTP/1.1 200 OK\r\nX: ",  # a header
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        OK + b"Content-Length: 100000\r\n\r\n",
        OK + b"\r\n",  # a body that ends with the connection: a shutdown is not its end
        OK + b"Transfer-Encoding: chunked\r\n\r\n186a0\r\n",
    ],
)
def test_a_server_that_sends_byte_by_byte_is_disconnected_at_the_time_limit(serve: Serve, head: bytes) -> None:
    server = serve(answer=lambda: byte_by_byte(head))
    started = time.monotonic()
    error = fetch_error(fetcher(server, DEADLINE), max_bytes=1_000_000)
    assert (error.status, error.code) == (400, "image_url_failed")
    assert "too slow" in error.message
    assert time.monotonic() - started < 10  # the server would send for 20 s


def test_a_server_that_sends_nothing_is_disconnected_at_the_time_limit(serve: Serve) -> None:
    done = threading.Event()

    def send_nothing() -> Iterator[bytes]:
        done.wait(20)
        yield b""

    error = fetch_error(fetcher(serve(answer=send_nothing), DEADLINE))
    done.set()
    assert (error.status, error.code) == (400, "image_url_failed")
    assert "too slow" in error.message


def test_a_server_without_a_tls_handshake_is_disconnected_at_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect(host: str, address: str, timeout_seconds: float) -> HTTPSConnection:
            connection = image_url.create_connection(host, address, timeout_seconds)
            connection.host, connection.port = "127.0.0.1", listener.getsockname()[1]
            return connection

        error = fetch_error(AllowListFetcher((HOST,), DEADLINE, lambda host: [PUBLIC], connect))
    assert (error.status, error.code) == (400, "image_url_failed")


def test_a_fetch_leaves_no_thread(serve: Serve) -> None:
    server = serve(ok_response(b"bytes"))
    before = set(threading.enumerate())
    fetcher(server, 60.0)(URL, 1000)
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(5)  # a canceled timer ends at once
    assert not any(thread.is_alive() for thread in left)


def test_the_reader_decodes_a_fetched_image_and_an_error_has_the_path_of_the_url() -> None:
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
        "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    )
    limits = ImageLimits(1000, 1000)
    fetched: list[tuple[str, int]] = []

    def fetch(url: str, max_bytes: int) -> bytes:
        fetched.append((url, max_bytes))
        return png if url == URL else b"<html>"

    image = ImageReader(limits, fetch).read(ImageSource(URL, "images[0]"), OpenedImage.decode)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (1, 1), (255, 0, 0))
    assert fetched == [(URL, 1000)]
    with pytest.raises(BadRequest) as error_info:
        ImageReader(limits, fetch).read(ImageSource(URL + "&other", "images[1]"), OpenedImage.decode)
    assert error_info.value.param == "images[1]"
