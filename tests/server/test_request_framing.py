"""Where a request ends, for requests of any form in any pieces. gunicorn's own parser is the reference."""

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_serving.server.incoming_request import IncomingRequest
from llava_serving.server.request_framing import MAX_HEAD_BYTES, HeadTooLarge, RequestFraming, UnknownEnd

HEAD = b"POST /score HTTP/1.1\r\nHost: here\r\n"

bodies = st.binary(max_size=200)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draws a request and its body: of a length, in chunks (with extensions and trailers), or none."""
    body = draw(bodies)
    kind = draw(st.sampled_from(["length", "chunked", "none"]))
    if kind == "none":
        return b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", b""
    name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]))
    if kind == "length":
        return HEAD + b"%b: %d\r\n\r\n%b" % (name, len(body), body), body
    chunks, rest = b"", body
    while rest:
        size = draw(st.integers(1, len(rest)))
        extension = draw(st.sampled_from([b"", b";name=value"]))
        chunks += b"%x%b\r\n%b\r\n" % (size, extension, rest[:size])
        rest = rest[size:]
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    return HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + trailer + b"\r\n", body


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True) if start < end]


@settings(max_examples=300, deadline=None)
@given(first=requests(), after=st.binary(max_size=50), cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_the_end_of_a_request_is_found_in_any_pieces(first: tuple[bytes, bytes], after: bytes, cuts: list[int]) -> None:
    request, body = first
    incoming, leftover = IncomingRequest(0.0), b""
    pieces = split(request + after, cuts)
    while not incoming.is_whole:
        leftover = incoming.push(pieces.pop(0)) or b""
    assert leftover + b"".join(pieces) == after
    held: list[int] = []
    incoming.deliver(held.append)
    parsed = next(get_parser(Config(), incoming, ("127.0.0.1", 1)))
    assert parsed.body.read(1000) == body
    assert held == [len(request)]


@settings(max_examples=200, deadline=None)
@given(request=requests(), cut=st.integers(0, 1000), cuts=st.lists(st.integers(0, 1000), max_size=4))
def test_a_request_without_its_last_bytes_is_not_whole(request: tuple[bytes, bytes], cut: int, cuts: list[int]) -> None:
    data = request[0][: cut % len(request[0])]
    framing = RequestFraming()
    assert [framing.push(piece) for piece in split(data, cuts)] == [None] * len(split(data, cuts))


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 1\r\nContent-Length: 2\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: 1, 1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Content-Length:\r\n",
    ],
)
def test_a_request_that_names_no_end_or_two_is_unknown(headers: bytes) -> None:
    with pytest.raises(UnknownEnd):
        RequestFraming().push(HEAD + headers + b"\r\n")


@pytest.mark.parametrize("chunks", [b"ZZ\r\n", b"-1\r\n", b"\r\n", b"1" * 2000, b"1\r\na\r\n" * 70_000])
def test_a_malformed_chunk_is_unknown(chunks: bytes) -> None:
    with pytest.raises(UnknownEnd):
        RequestFraming().push(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)


def test_a_head_above_the_limit_is_refused_before_it_ends() -> None:
    framing = RequestFraming()
    framing.push(HEAD)
    with pytest.raises(HeadTooLarge):
        framing.push(b"X: " + b"a" * MAX_HEAD_BYTES)


def test_expect_is_taken_out_of_the_head() -> None:
    framing = RequestFraming()
    framing.push(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert framing.expects_continue
    assert framing.head == HEAD + b"Content-Length: 2\r\n\r\n"
    assert framing.push(b"{}") == 2
