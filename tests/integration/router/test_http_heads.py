"""Heads that a proxy and this door could read in two ways are refused; what was asked before is answered."""

from __future__ import annotations

import pytest

from tests.support.http_door import ANY, RawConnection
from tests.support.wait import eventually

HEALTH = ("GET /health HTTP/1.1", "host: door")


@pytest.fixture
async def door(start_worker, start_router):
    """A door, and its server."""
    router = await start_router(await start_worker("a"), http=ANY)
    return router.router.http_url, router.router._http


@pytest.mark.parametrize(
    "head",
    [
        ("GET /health HTTP/1.1",),
        ("GET /health HTTP/1.1", "host: door", "host: other"),
        (*HEALTH, "authorization: Bearer a", "authorization: Bearer b"),
        (*HEALTH, "x-chiron-class: batch", "x-chiron-class: interactive"),
        ("POST /v1/completions HTTP/1.1", "host: door", "transfer-encoding: gzip, chunked"),
    ],
)
async def test_a_head_of_two_meanings_is_refused_after_what_came_before(door, head: tuple[str, ...]) -> None:
    url, server = door
    connection = await RawConnection.open(url)
    connection.send(*HEALTH, body=b"".join(f"{line}\r\n".encode() for line in head) + b"\r\n" + b"0\r\n\r\n")
    assert (await connection.answer()).status == 200
    refused = await connection.answer()
    assert (refused.status, refused.error["code"]) == (400, "bad_request")
    assert refused.headers["connection"] == "close"
    assert await connection.closed() == b""
    connection.close()
    await eventually(lambda: not server.state.connections)


async def test_a_request_without_a_version_is_refused(door) -> None:
    url, _ = door
    connection = await RawConnection.open(url)
    connection.writer.write(b"GET /health\r\n\r\n")
    assert (await connection.answer()).status == 400
    connection.close()


async def test_what_follows_a_refused_head_is_not_answered(door) -> None:
    url, _ = door
    connection = await RawConnection.open(url)
    connection.send("GET /health HTTP/1.1", body=b"GET /health HTTP/1.1\r\nhost: door\r\n\r\n" * 3)
    assert (await connection.answer()).status == 400
    assert await connection.closed() == b""
    connection.close()


async def test_damage_after_a_request_does_not_take_its_answer(door) -> None:
    url, _ = door
    connection = await RawConnection.open(url)
    connection.send(*HEALTH, body=b"\x00\x01 this is no request\r\n\r\n")
    assert (await connection.answer()).status == 200
    assert (await connection.answer()).status == 400
    assert await connection.closed() == b""
    connection.close()
