"""Where an HTTP/1.1 request ends (RFC 9112, sections 6 and 7).

Only finds the end. gunicorn parses the request once it is whole, and refuses what is malformed or ambiguous.
"""

import re
from typing import Protocol

MAX_HEAD_BYTES = 64 * 1024
# More chunks than a client makes of the largest body. Each one costs time of the thread that reads all connections.
MAX_CHUNKS = 64 * 1024
MAX_CHUNK_LINE_BYTES = 1024

HEAD_END = b"\r\n\r\n"
CONTENT_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([^\r\n]*)", re.IGNORECASE)
TRANSFER_ENCODING = re.compile(rb"\ntransfer-encoding:[ \t]*([^\r\n]*)", re.IGNORECASE)
EXPECT_CONTINUE = re.compile(rb"\nexpect:[ \t]*100-continue[ \t]*\r(?=\n)", re.IGNORECASE)
DIGITS = re.compile(rb"[0-9]{1,18}")


class HeadTooLarge(Exception):
    """The head has more than MAX_HEAD_BYTES."""


class UnknownEnd(Exception):
    """The request does not say where it ends, or says it in two ways."""


class _Body(Protocol):
    size: int  # in bytes, without the lines of chunks, as far as it is known

    def end_in(self, data: bytes) -> int | None:
        """Returns where the body ends in the next bytes, None if it goes on. Raises UnknownEnd."""
        ...


class RequestFraming:
    """Finds the end of one request in its bytes, which arrive in pieces."""

    def __init__(self) -> None:
        self.head = b""  # without `Expect: 100-continue`; empty until it is complete
        self.expects_continue = False
        self.body_start = 0  # in the bytes that were pushed last
        self._partial_head = bytearray()
        self._body: _Body | None = None

    @property
    def has_body(self) -> bool:
        """Returns whether the head is complete and says where the body ends. A body may have no bytes."""
        return self._body is not None

    @property
    def body_size(self) -> int:
        """The bytes of the body, as far as they are known: of a chunked body those of the chunks that have begun."""
        return 0 if self._body is None else self._body.size

    def push(self, data: bytes) -> int | None:
        """Returns how many bytes of `data` belong to the request, once it is complete.

        Returns None if the request goes on. Raises HeadTooLarge or UnknownEnd.
        """
        self.body_start = 0 if self._body is not None else self._push_head(data)
        if self._body is None:
            return None
        end = self._body.end_in(data[self.body_start :])
        return None if end is None else self.body_start + end

    def _push_head(self, data: bytes) -> int:
        """Returns where the body begins in `data`: at the end, if the head goes on."""
        partial = self._partial_head
        searched = max(0, len(partial) - len(HEAD_END) + 1)
        before = len(partial)
        partial += data
        end = partial.find(HEAD_END, searched)
        if max(end, 0) > MAX_HEAD_BYTES or (end < 0 and len(partial) > MAX_HEAD_BYTES):
            raise HeadTooLarge
        if end < 0:
            return len(data)
        head = bytes(partial[: end + len(HEAD_END)])
        self.body_start = len(head) - before
        partial.clear()
        self._read_head(head)
        return self.body_start

    def _read_head(self, head: bytes) -> None:
        self.expects_continue = EXPECT_CONTINUE.search(head) is not None
        # The front sends "100 Continue" itself. gunicorn would send it a second time, after the body.
        self.head = EXPECT_CONTINUE.sub(b"", head)
        lengths, codings = CONTENT_LENGTH.findall(head), TRANSFER_ENCODING.findall(head)
        if len(lengths) + len(codings) > 1:
            raise UnknownEnd
        if codings:
            if codings[0].strip().lower() != b"chunked":
                raise UnknownEnd
            self._body = _ChunkedBody()
            return
        length = lengths[0].strip() if lengths else b"0"
        if not DIGITS.fullmatch(length):
            raise UnknownEnd
        self._body = _BodyOfLength(int(length))


class _BodyOfLength:
    def __init__(self, length: int) -> None:
        self.size = self._missing = length

    def end_in(self, data: bytes) -> int | None:
        if len(data) >= self._missing:
            return self._missing
        self._missing -= len(data)
        return None


class _ChunkedBody:
    """A body of chunks: each has a line with its size, its data, and the end of a line. A chunk of size 0 is the last.

    Trailers may follow, then an empty line.
    """

    def __init__(self) -> None:
        self.size = 0
        self._line = bytearray()
        self._data_bytes = 0  # what is missing of the current chunk, with the end of its line
        self._num_lines = 0
        self._in_trailers = False

    def end_in(self, data: bytes) -> int | None:
        position = 0
        while position < len(data):
            skipped = min(self._data_bytes, len(data) - position)
            self._data_bytes -= skipped
            position += skipped
            newline = data.find(b"\n", position)
            line_end = len(data) if newline < 0 else newline + 1
            self._line += data[position:line_end]
            position = line_end
            if len(self._line) > MAX_CHUNK_LINE_BYTES:
                raise UnknownEnd
            if newline >= 0 and self._ends_with(self._take_line()):
                return position
        return None

    def _take_line(self) -> bytes:
        line = bytes(self._line).rstrip(b"\r\n")
        self._line.clear()
        self._num_lines += 1
        if self._num_lines > MAX_CHUNKS:
            raise UnknownEnd
        return line

    def _ends_with(self, line: bytes) -> bool:
        """Reads a line outside of the chunks' data. Returns whether it is the last line of the body."""
        if self._in_trailers:
            return not line
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise UnknownEnd from None
        if size < 0:
            raise UnknownEnd
        self.size += size
        self._in_trailers = size == 0
        self._data_bytes = size + 2 if size else 0
        return False
