"""The size that a chunk has announced, told from the bytes that a parser has gone through."""

from __future__ import annotations

import httptools
import pytest

from services.router.http.chunk_sizes import ChunkSizes

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


class Reader:
    """Feeds a parser as a connection does."""

    def __init__(self) -> None:
        self.sizes = ChunkSizes()
        self.on_chunk_header, self.on_chunk_complete = self.sizes.begin, self.sizes.end
        self._parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        self.sizes.end()

    def on_body(self, body: bytes) -> None:
        self.sizes.take(len(body))

    def feed(self, data: bytes) -> int:
        """What is announced after these bytes."""
        self._parser.feed_data(data)
        self.sizes.parsed(data)
        return self.sizes.announced


@pytest.mark.parametrize(
    ("body", "announced"),
    [
        (b"", 0),
        (b"ff", 0),
        (b"ff\r\n", 255),
        (b"ff\r\n" + b"x" * 100, 255),
        (b"ff\r\n" + b"f\r\n" * 50, 255),
        (b"FF;a=1\r\nx", 255),
        (b"ff\r\n" + b"x" * 255, 255),
        (b"ff\r\n" + b"x" * 255 + b"\r\n", 0),
        (b"3\r\nabc\r\n4\r\nab", 4),
        (b"3\r\n7\r\n\r\n4\r\nab", 4),
        (b"3\r\nabc\r\n0\r\n", 0),
        (b"3\r\nabc\r\n0\r\nff: a\r\n", 0),
        (b"3\r\nabc\r\n0\r\nff: a\r\nff", 0),
        (b"3\r\nabc\r\n0\r\n\r\n", 0),
        (b"ffffffffffffffff\r\n", 2**64 - 1),
        (b"ff;" + b"e" * 200 + b"\r\nabc", 255),
    ],
)
def test_it_is_that_of_the_chunk_that_has_not_ended(body: bytes, announced: int) -> None:
    assert Reader().feed(HEAD + body) == announced
    assert Reader().feed(HEAD + b"3\r\nabc\r\n0\r\n\r\n" + HEAD + body) == announced


@pytest.mark.parametrize(
    "body", [b"3\r\nabc\r\nff;a=1\r\nxyz", b"ff\r\nf\r\nf", b"3\r\nabc\r\n0\r\nff: a\r\nff: b"]
)
def test_it_is_the_same_however_the_bytes_come(body: bytes) -> None:
    whole = Reader().feed(HEAD + body)
    for cut in range(len(body) + 1):
        reader = Reader()
        reader.feed(HEAD + body[:cut])
        assert reader.feed(body[cut:]) == whole
    one_by_one = Reader()
    assert [one_by_one.feed(bytes([byte])) for byte in HEAD + body][-1] == whole


def test_one_that_is_out_of_sight_is_no_size() -> None:
    reader = Reader()
    reader.feed(HEAD + b"3;" + b"e" * 100)
    assert reader.feed(b"ffffffff\r\na") == 0
