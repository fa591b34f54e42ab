"""What cannot be read as HTTP is refused at once, by what is wrong with it."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.support.http_door import ANY, RawConnection, get

CHUNKED = ("POST /v1/completions HTTP/1.1", "host: door", "transfer-encoding: chunked")


@pytest.fixture
async def url(start_worker, start_router) -> str:
    """Of a door that waits long for bodies: what is told at once is not told by a time-out."""
    limits = dataclasses.replace(ANY, body_s=600.0, header_s=600.0, body_bytes=1000, file_bytes=2000)
    return (await start_router(await start_worker("a"), http=limits)).router.http_url


@pytest.mark.parametrize(
    ("head", "cause"),
    [
        ("FETCH /health HTTP/1.1\r\nhost: x\r\n\r\n", "does not begin with a method"),
        ("get /health HTTP/1.1\r\nhost: x\r\n\r\n", "does not begin with a method"),
        ("GET /health page HTTP/1.1\r\nhost: x\r\n\r\n", "first line is not METHOD TARGET HTTP/1.1"),
        ("GET /health HTTP/7.1\r\nhost: x\r\n\r\n", "Invalid HTTP version"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not spoken here"),
        ("GET /health HTTP/1.1\r\nho st: x\r\n\r\n", "a header's name has a character"),
        ("GET /health HTTP/1.1\r\nhost: a\x01b\r\n\r\n", "a header's value has a character"),
        ("POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 5x\r\n\r\n", "character in Content-Length"),
        ("POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 9e9\r\n\r\n", "character in Content-Length"),
        (f"POST /v1/files HTTP/1.1\r\ncontent-length: {'9' * 30}\r\n\r\n", "Content-Length overflow"),
        ("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", "Duplicate Content-Length"),
        ("GET http://elsewhere HTTP/1.1\r\nhost: x\r\n\r\n", "target 'http://elsewhere' is no path"),
        ("CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", "target 'x:1' is no path"),
    ],
)
async def test_a_damaged_head_is_refused_by_its_cause(url: str, head: str, cause: str) -> None:
    connection = await RawConnection.open(url)
    connection.writer.write(head.encode("latin-1"))
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert answer.error["message"].startswith("this is no HTTP request that can be read: ")
    assert cause in answer.error["message"]
    assert await connection.closed() == b""
    connection.close()


async def test_a_damaged_chunk_is_refused_by_its_cause(url: str) -> None:
    connection = await RawConnection.open(url)
    connection.send(*CHUNKED, body=b"5\r\nhello\r\nzz\r\n")
    answer = await connection.answer()
    assert answer.status == 400
    assert answer.error["message"] == "the request's body is damaged: Invalid character in chunk size"
    connection.close()


@pytest.mark.parametrize("size", ["ffffffffffffffff", "3E9", "3e9;named=value", "000003e9"])
@pytest.mark.parametrize("cut", [None, 1, 3])
async def test_a_chunk_larger_than_a_body_may_be_is_refused_before_it_comes(
    url: str, size: str, cut: int | None
) -> None:
    connection = await RawConnection.open(url)
    connection.send(*CHUNKED, body=b"5\r\nhello\r\n")
    line = f"{size}\r\n".encode()
    if cut is not None:
        # In pieces that the door reads one by one: it has answered another connection in between.
        connection.writer.write(line[:cut])
        assert (await get(url, "/health")).status == 200
        line = line[cut:]
    connection.writer.write(line)
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    has = int(size.partition(";")[0], 16)
    assert (
        answer.error["message"]
        == f"the request's body has a chunk of {has} bytes, and is larger than 1000 bytes"
    )
    assert await connection.closed() == b""
    connection.close()


async def test_a_size_that_no_number_holds_is_damage(url: str) -> None:
    connection = await RawConnection.open(url)
    connection.send(*CHUNKED, body=b"fffffffffffffffff\r\n")
    answer = await connection.answer()
    assert answer.status == 400
    assert "Chunk size overflow" in answer.error["message"]
    connection.close()


async def test_chunks_that_fit_are_taken_however_they_come(url: str) -> None:
    connection = await RawConnection.open(url)
    body = b'{"model": "none", "prompt": "' + b"x" * 900 + b'"}'
    assert 900 < len(body) < 1000
    whole = b"%x;why=ffffffff\r\n%b\r\n0\r\nffffffff: ffffffff\r\n\r\n" % (len(body), body)
    connection.send(*CHUNKED)
    for piece in (whole[:1], whole[1:20], whole[20:-30], whole[-30:-5], whole[-5:]):
        connection.writer.write(piece)
        await asyncio.sleep(0)
    for _ in range(2):
        answer = await connection.answer()
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        connection.send(*CHUNKED, body=whole)
    connection.close()


@pytest.mark.parametrize(("version", "first"), [("1.0", "HTTP/1.1 404"), ("1.1", "HTTP/1.1 100")])
async def test_a_client_of_http_1_0_gets_no_interim_answer(url: str, version: str, first: str) -> None:
    connection = await RawConnection.open(url)
    body = b'{"model": "none", "prompt": "x"}'
    lines = ("host: door", "expect: 100-continue", f"content-length: {len(body)}")
    connection.send(f"POST /v1/completions HTTP/{version}", *lines)
    if version == "1.0":
        connection.writer.write(body)
    head = await connection.reader.readuntil(b"\r\n\r\n")
    assert head.decode().startswith(first)
    connection.close()
