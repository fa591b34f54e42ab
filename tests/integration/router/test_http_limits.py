"""What the HTTP door bears from its clients, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest

from tests.support.http_door import ANY, RawConnection, ask, get, post
from tests.support.wait import eventually

HEALTH = ("GET /health HTTP/1.1", "host: door")


@pytest.fixture
def start_door(start_worker, start_router):
    async def start(**limits: object):
        """The URL of a door with these limits, and its server."""
        router = await start_router(await start_worker("a"), http=dataclasses.replace(ANY, **limits))
        return router.router.http_url, router.router._http

    return start


async def test_headers_are_bounded_in_size(start_door) -> None:
    url, _ = await start_door(header_bytes=1000)
    assert (await get(url, "/health", x_ok="x" * 800)).status == 200
    for line in (f"x-large: {'x' * 1000}", "\r\n".join(f"x-{n}: {n}" for n in range(200))):
        answer = await ask(url, "GET /health HTTP/1.1", line)
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert answer.headers["connection"] == "close"


async def test_headers_that_never_end_are_not_gathered(start_door) -> None:
    url, _ = await start_door(header_bytes=1000)
    connection = await RawConnection.open(url)
    connection.writer.write(b"GET /health HTTP/1.1\r\nx-endless: ")
    for _ in range(3):
        connection.writer.write(b"x" * 500)
    assert (await connection.answer()).status == 431
    connection.close()


async def test_a_request_line_is_part_of_the_headers(start_door) -> None:
    url, _ = await start_door(header_bytes=1000)
    assert (await get(url, f"/{'x' * 1000}")).status == 431


async def test_headers_have_to_come_in_time(start_door) -> None:
    url, _ = await start_door(header_s=0.2)
    slow = await RawConnection.open(url)
    slow.writer.write(b"GET /health HTTP/1.1\r\nhost: ")
    answer = await slow.answer()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert await slow.closed() == b""
    slow.close()


async def test_each_further_byte_gives_headers_no_more_time(start_door) -> None:
    url, _ = await start_door(header_s=0.3)
    slow = await RawConnection.open(url)
    slow.writer.write(b"GET /health HTTP/1.1\r\nx-slow: ")

    async def trickle() -> None:
        while True:
            slow.writer.write(b"x")
            await asyncio.sleep(0.02)

    trickling = asyncio.create_task(trickle())
    try:
        assert (await slow.answer()).status == 408
    finally:
        trickling.cancel()
        slow.close()


async def test_a_client_that_says_nothing_is_not_kept(start_door) -> None:
    url, server = await start_door(header_s=0.2)
    silent = await RawConnection.open(url)
    await eventually(lambda: len(server.state.connections) == 1)
    assert await silent.closed() == b""
    await eventually(lambda: not server.state.connections)
    silent.close()


async def test_empty_lines_are_no_way_to_stay(start_door) -> None:
    url, _ = await start_door(header_s=0.2, keep_alive_s=60.0)
    connection = await RawConnection.open(url)
    connection.send(*HEALTH)
    assert (await connection.answer()).status == 200
    connection.writer.write(b"\r\n")
    assert await connection.closed() == b""
    connection.close()


async def test_a_connection_is_kept_between_requests_for_a_while(start_door) -> None:
    url, _ = await start_door(keep_alive_s=0.3)
    connection = await RawConnection.open(url)
    for _ in range(2):
        connection.send(*HEALTH)
        assert (await connection.answer()).status == 200
    assert await connection.closed() == b""
    connection.close()


async def test_connections_are_bounded(start_door) -> None:
    url, server = await start_door(connections=2, host_share=1.0)
    kept = [await RawConnection.open(url) for _ in range(2)]
    await eventually(lambda: len(server.state.connections) == 2)
    refused = await RawConnection.open(url)
    answer = await refused.answer()
    assert (answer.status, answer.error["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"] == "1"
    kept[0].close()
    refused.close()
    await eventually(lambda: len(server.state.connections) == 1)
    assert (await get(url, "/health")).status == 200
    kept[1].close()


async def test_one_host_does_not_have_all_connections(start_door) -> None:
    url, server = await start_door(connections=5, host_share=0.5)
    kept = [await RawConnection.open(url) for _ in range(2)]
    await eventually(lambda: len(server.state.connections) == 2)
    refused = await RawConnection.open(url)
    answer = await refused.answer()
    assert (answer.status, answer.error["code"]) == (429, "too_many_connections")
    assert answer.headers["retry-after"] == "1"
    assert await refused.closed() == b""
    refused.close()
    # Another address has its own share.
    other = await RawConnection.open(url, local_addr=("127.0.0.2", 0))
    other.send(*HEALTH)
    assert (await other.answer()).status == 200
    kept[0].close()
    await eventually(lambda: server.hosts.count == 2)
    assert (await get(url, "/health")).status == 200
    for connection in (kept[1], other):
        connection.close()
    await eventually(lambda: server.hosts.count == 0)


async def test_a_client_that_sends_too_far_ahead_is_ended(start_door) -> None:
    url, server = await start_door(pipelined=2)
    head = b"GET /health HTTP/1.1\r\nhost: door\r\n\r\n"
    connection = await RawConnection.open(url)
    connection.writer.write(head * 3)
    for _ in range(3):
        assert (await connection.answer()).status == 200
    connection.writer.write(head * 1000)
    answers = (await connection.closed()).split(b"HTTP/1.1 ")[1:]
    assert len(answers) < 10
    assert all(answer.startswith(b"200 OK") for answer in answers[:3])
    assert answers[-1].startswith(b"503 ")
    assert b"retry-after: 1" in answers[-1]
    await eventually(lambda: not server.state.connections)
    connection.close()


async def test_a_body_that_nobody_needs_is_not_read_on_and_on(start_door) -> None:
    url, server = await start_door()
    connection = await RawConnection.open(url)
    connection.send(*HEALTH, "content-length: 100000000", body=b"x" * 1000)
    assert (await connection.answer()).status == 200
    with contextlib.suppress(ConnectionError):
        for _ in range(1000):
            connection.writer.write(b"x" * 10_000)
            await connection.writer.drain()
    await eventually(lambda: not server.state.connections)
    connection.close()


async def test_a_body_that_nobody_needs_and_that_does_not_come_is_not_waited_for(start_door) -> None:
    url, _ = await start_door(keep_alive_s=0.2)
    connection = await RawConnection.open(url)
    connection.send(*HEALTH, "content-length: 100000000")
    assert (await connection.answer()).status == 200
    assert await connection.closed() == b""
    connection.close()


async def test_what_is_no_http_is_told_so(start_door) -> None:
    url, _ = await start_door()
    answer = await ask(url, "this is no request")
    assert (answer.status, answer.error["code"]) == (400, "bad_request")


@pytest.mark.parametrize("lengths", [("5", "6"), ("-1",), ("5x",)])
async def test_a_body_has_one_length(start_door, lengths: tuple[str, ...]) -> None:
    url, _ = await start_door()
    lines = [f"content-length: {length}" for length in lengths]
    assert (await ask(url, "POST /v1/embeddings HTTP/1.1", *lines, body=b"12345")).status == 400


async def test_length_and_chunks_together_are_refused(start_door) -> None:
    url, _ = await start_door()
    lines = ("content-length: 5", "transfer-encoding: chunked")
    answer = await ask(url, "POST /v1/embeddings HTTP/1.1", *lines, body=b"0\r\n\r\n")
    assert answer.status == 400


@pytest.mark.parametrize("before", [b"", b"5\r\nhello\r\n"])
async def test_a_damaged_chunk_is_told_and_ends_the_connection(start_door, before: bytes) -> None:
    url, server = await start_door()
    connection = await RawConnection.open(url)
    connection.send("POST /v1/completions HTTP/1.1", "host: x", "transfer-encoding: chunked", body=before)
    await asyncio.sleep(0)
    connection.writer.write(b"zz\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert answer.headers["x-request-id"].startswith("req-")
    # Nothing after it is taken for a request.
    assert await connection.closed() == b""
    connection.close()
    await eventually(lambda: not server.state.connections)


async def test_a_damaged_body_that_nobody_reads_ends_the_connection_after_the_answer(start_door) -> None:
    url, _ = await start_door()
    connection = await RawConnection.open(url)
    connection.send("GET /health HTTP/1.1", "host: x", "transfer-encoding: chunked", body=b"zz\r\n")
    connection.send(*HEALTH)
    assert (await connection.answer()).status == 200
    assert await connection.closed() == b""
    connection.close()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_compressed_body_is_refused_by_its_coding(start_door, path: str) -> None:
    url, _ = await start_door()
    answer = await post(url, path, {"model": "m"}, content_encoding="gzip")
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert "'gzip'" in answer.error["message"]
    assert answer.headers["accept-encoding"] == "identity"
    plain = await post(url, path, {"model": "m"}, content_encoding="identity")
    assert (plain.status, plain.error["code"]) == (400, "missing_required_parameter")


async def test_a_stop_waits_for_no_idle_connection(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"), http=ANY)
    connection = await RawConnection.open(router.router.http_url)
    connection.send(*HEALTH)
    await connection.answer()
    async with asyncio.timeout(5.0):
        await router.router.stop()
    assert await connection.closed() == b""
    with pytest.raises(ConnectionError):
        await RawConnection.open(router.router.http_url)
    connection.close()


async def test_an_answer_is_not_read_by_guesswork(start_door) -> None:
    """An upgrade to another protocol is not taken up, and the request is answered as it is."""
    url, _ = await start_door()
    lines = ("connection: upgrade", "upgrade: websocket")
    assert (await ask(url, "GET /health HTTP/1.1", *lines)).status == 200
    assert (await post(url, "/health", {})).status == 405
