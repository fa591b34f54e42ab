"""Requests that were damaged on the way: the HTTP door answers or ends them, and fails at none."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random

import pytest

from tests.support.http_door import ANY, RawConnection, get
from tests.support.wait import eventually

WHOLE = [
    b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 59\r\n\r\n"
    b'{"model":"none","messages":[{"role":"user","content":"x"}]}',
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /v1/models/%41%2f..%00 HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET http://elsewhere/v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
    b"POST /v1/batches HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 3\r\n\r\nabc",
    b"TRACE / HTTP/1.1\r\nauthorization: Bearer \xff\xff\r\ntraceparent: \xff\r\n\r\n",
]


def damaged(rng: random.Random) -> bytes:
    """One to three requests, some of whose bytes are others, gone, new or there twice."""
    data = bytearray(b"".join(rng.choice(WHOLE) for _ in range(rng.randint(1, 3))))
    for _ in range(rng.choice([0, 1, 2, 8])):
        place = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randint(1, 9)]
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 9))
            case _:
                data[place:place] = data[place : place + rng.randint(1, 40)]
    return bytes(data)


@pytest.mark.parametrize("seed", [1, 2])
async def test_damaged_requests_are_answered_or_ended_and_leave_nothing(
    start_worker, start_router, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    limits = dataclasses.replace(ANY, header_s=0.3, body_s=0.3, keep_alive_s=0.3)
    router = await start_router(await start_worker("a"), http=limits)
    url, rng = router.router.http_url, random.Random(seed)

    async def send(data: bytes, cut: int, *, ends: bool) -> None:
        connection = await RawConnection.open(url)
        try:
            connection.writer.write(data[:cut])
            await asyncio.sleep(0)
            connection.writer.write(data[cut:])
            if ends:
                connection.writer.write_eof()
            await connection.closed()
        finally:
            connection.close()

    sendings = []
    for _ in range(150):
        data = damaged(rng)
        sendings.append(send(data, rng.randrange(len(data) + 1), ends=rng.random() < 0.3))
    await asyncio.gather(*sendings)
    assert (await get(url, "/health")).status == 200
    await eventually(lambda: not router.router._http.state.connections)
    assert router.router._serving.under_way.count == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
