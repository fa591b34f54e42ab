"""Forms that a file is handed in by, as libraries for mail write them: taken, or refused by their cause."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.router.batch.settings import BatchSettings
from services.router.http.settings import HttpSettings
from tests.support.http_door import HttpAnswer, RawConnection, get

FORM = (
    '--edge\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    '--edge\r\ncontent-disposition: form-data; name="file"; filename="lines.jsonl"\r\n{}\r\n{{}}\n\r\n'
    "--edge--\r\n"
)
PLAIN = FORM.format("").encode()


@pytest.fixture
async def url(start_router, controller, tmp_path: Path) -> str:
    controller.add("m")
    door = HttpSettings(listen="127.0.0.1:0", file_bytes=1 << 20)
    router = await start_router(batch=BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}"), http=door)
    return router.router.http_url


async def sent(url: str, *pieces: bytes) -> HttpAnswer:
    """The answer to a form that comes in these pieces."""
    connection = await RawConnection.open(url)
    kind, length = "content-type: multipart/form-data; boundary=edge", sum(map(len, pieces))
    connection.send("POST /v1/files HTTP/1.1", "host: door", kind, f"content-length: {length}")
    try:
        for piece in pieces:
            connection.writer.write(piece)
            await connection.writer.drain()
            await asyncio.sleep(0)
        return await connection.answer()
    finally:
        connection.close()


async def files(url: str) -> list[Any]:
    """What is kept."""
    found: list[Any] = (await get(url, "/v1/files")).json()["data"]
    return found


@pytest.mark.parametrize(
    "preamble",
    [
        b"\r\n",
        b"This is a message in several parts.\r\n",
        b"It says --edge, which begins no line, and\r\n--edg\r\nneither does this.\r\n",
        b"-" * 4000 + b"\r\n",
    ],
)
async def test_what_comes_before_the_first_boundary_is_not_read(url: str, preamble: bytes) -> None:
    body = preamble + PLAIN
    for cut in (0, 1, len(preamble) - 1, len(preamble), len(preamble) + 3, len(preamble) + 8):
        answer = await sent(url, body[:cut], body[cut:])
        assert (answer.status, answer.json().get("bytes")) == (200, 3), cut
        content = await get(url, f"/v1/files/{answer.json()['id']}/content")
        assert content.body == b"{}\n"


async def test_a_boundary_that_is_not_there_is_told(url: str) -> None:
    other = await sent(url, PLAIN.replace(b"edge", b"elsewhere"))
    assert (other.status, other.error["code"]) == (400, "invalid_form")
    assert other.error["message"] == "The form cannot be read: its boundary 'edge' is not in it."
    # Told long before all of it has come.
    connection = await RawConnection.open(url)
    kind = "content-type: multipart/form-data; boundary=edge"
    connection.send(
        "POST /v1/files HTTP/1.1", "host: door", kind, "content-length: 1000000", body=b"x" * 9000
    )
    refused = await connection.answer()
    connection.close()
    assert refused.error["message"].endswith("its boundary 'edge' is not among its first 4096 bytes.")
    assert not await files(url)


@pytest.mark.parametrize("coding", ["base64", "Quoted-Printable", "x-gzip"])
async def test_a_part_that_is_encoded_is_refused_by_its_coding(url: str, coding: str) -> None:
    answer = await sent(url, FORM.format(f"Content-Transfer-Encoding: {coding}\r\n").encode())
    assert (answer.status, answer.error["code"]) == (400, "invalid_form")
    assert f"its part 'file' has the content-transfer-encoding {coding!r}" in answer.error["message"]
    assert not await files(url)


@pytest.mark.parametrize("coding", ["7bit", "8BIT", "binary "])
async def test_a_part_that_is_as_it_is_may_say_so(url: str, coding: str) -> None:
    assert (await sent(url, FORM.format(f"content-transfer-encoding: {coding}\r\n").encode())).status == 200
