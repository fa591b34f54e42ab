"""`/v1/files` of a router on a queue in SQLite: OpenAI's own client, and clients that mean no good."""

from __future__ import annotations

import asyncio
import io
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from chiron.batch.filing import FileHead
from services.router.batch.settings import BatchSettings
from services.router.http.files.upload import CHUNK_BYTES
from services.router.http.settings import HttpSettings
from tests.support.http_door import ANY, HttpAnswer, RawConnection, get, openai_at
from tests.support.openai_batches import lines, uploaded
from tests.support.wait import eventually

MOST = 3 * CHUNK_BYTES
BOUNDARY = "a-boundary"
DOOR = HttpSettings(listen="127.0.0.1:0", file_bytes=MOST, body_s=0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


@pytest.fixture
async def router(start_router, controller, path: Path) -> Any:
    controller.add("m")
    return (await start_router(batch=BatchSettings(store=f"sqlite:{path}"), http=DOOR)).router


@pytest.fixture
async def client(router: Any) -> AsyncIterator[AsyncOpenAI]:
    async with openai_at(router.http_url) as client:
        yield client


def part(name: str, content: bytes = b"", filename: str | bytes | None = None) -> bytes:
    """One part of a form."""
    told = filename.encode() if isinstance(filename, str) else filename
    suffix = b"" if told is None else b'; filename="' + told + b'"'
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"'.encode()
    return head + suffix + b"\r\n\r\n" + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


PURPOSE = part("purpose", b"batch")
FILE = part("file", b"{}\n", "lines.jsonl")


async def sent(
    url: str, body: bytes, *, kind: str = f"multipart/form-data; boundary={BOUNDARY}"
) -> HttpAnswer:
    connection = await RawConnection.open(url)
    length = f"content-length: {len(body)}"
    connection.send("POST /v1/files HTTP/1.1", "host: door", f"content-type: {kind}", length, body=body)
    try:
        return await connection.answer()
    finally:
        connection.close()


def kept(path: Path) -> tuple[int, int, int]:
    """Files, their chunks, and bytes that count, in a store that a router holds."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        files, chunks = db.execute("SELECT count(*), coalesce(sum(chunks), 0) FROM files").fetchone()
        return files, chunks, db.execute("SELECT stored_bytes FROM store").fetchone()[0]
    finally:
        db.close()


async def nothing_left(path: Path) -> None:
    await eventually(lambda: kept(path) == (0, 0, 0), what="nothing is left of an upload")


async def test_a_file_is_kept_told_of_read_and_deleted(client: AsyncOpenAI, path: Path) -> None:
    content = lines(20) + bytes(range(256)) * 8_000
    made = await client.files.create(file=("lines é.jsonl", io.BytesIO(content)), purpose="batch")
    assert made.id.startswith("file-")
    assert (made.object, made.bytes, made.filename) == ("file", len(content), "lines é.jsonl")
    assert (made.purpose, made.status) == ("batch", "processed")
    assert made.expires_at == pytest.approx(made.created_at + 30 * 86_400, abs=1)
    assert await client.files.retrieve(made.id) == made
    answer = await client.files.content(made.id)
    assert answer.content == content
    assert (
        answer.response.headers["content-disposition"] == "attachment; filename*=UTF-8''lines%20%C3%A9.jsonl"
    )
    assert (await client.files.delete(made.id)).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as raised:
            await call(made.id)
        assert raised.value.code == "file_not_found"
    await nothing_left(path)


async def test_an_expiry_is_kept_within_bounds(client: AsyncOpenAI) -> None:
    made = await client.files.create(
        file=("a", b"x"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7_200}
    )
    assert made.expires_at == pytest.approx(made.created_at + 7_200, abs=1)
    for wrong in ({"anchor": "created_at", "seconds": 3_599}, {"anchor": "last_active_at", "seconds": 7_200}):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.files.create(file=("a", b"x"), purpose="batch", expires_after=wrong)  # type: ignore[arg-type]
        assert str(raised.value.param).startswith("expires_after.")


async def test_files_are_listed_in_either_order_and_page_by_page(client: AsyncOpenAI) -> None:
    made = []
    for number in range(5):
        made.append((await uploaded(client, b"x", f"{number}.jsonl")).id)
        await asyncio.sleep(0.002)  # Ids made within a millisecond have no order.
    assert [one.id async for one in client.files.list(limit=2)] == made[::-1]
    assert [one.id async for one in client.files.list(limit=2, order="asc")] == made
    page = await client.files.list(limit=2, order="asc", after=made[2])
    assert ([one.id for one in page.data], page.has_more) == (made[3:], False)
    assert (await client.files.list(purpose="fine-tune")).data == []
    assert len((await client.files.list(purpose="batch")).data) == 5
    # A file that is deleted while somebody goes through the pages ends nobody's way.
    await client.files.delete(made[2])
    assert [one.id for one in (await client.files.list(after=made[2])).data] == made[1::-1]
    invented = f"file-{int(made[1].removeprefix('file-'), 16) + 1:032x}"
    for wrong in (
        {"limit": 0},
        {"limit": 10_001},
        {"order": "up"},
        {"after": "../x"},
        {"after": "file-1"},
        {"after": invented},
        {"after": made[1].replace("file-", "batch_")},
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            await client.files.list(**wrong)  # type: ignore[arg-type]
        assert raised.value.param == next(iter(wrong))


async def test_a_page_has_a_thousand_files_at_most(router: Any, client: AsyncOpenAI) -> None:
    store = router._batch.queue.files

    async def one(number: int) -> None:
        key = ("", f"file-{number:032x}")
        await store.begin(key)
        await store.complete(key, FileHead("x", 60.0), 0)

    await asyncio.gather(*map(one, range(1_005)))
    page = await client.files.list()
    assert (len(page.data), page.has_more) == (1_000, True)
    assert [one.id async for one in client.files.list(order="asc")] == [
        f"file-{n:032x}" for n in range(1_005)
    ]


async def test_only_files_for_batches_are_taken(client: AsyncOpenAI, path: Path) -> None:
    with pytest.raises(openai.BadRequestError, match="'purpose' must be 'batch', not 'fine-tune'") as raised:
        await client.files.create(file=("a", b"x"), purpose="fine-tune")
    assert raised.value.param == "purpose"
    await nothing_left(path)


HOSTILE = (
    "../../etc/passwd",
    "/etc/passwd",
    "..\\\\..\\\\windows",
    "a/b",
    "..",
    ".",
    " ",
    "",
    "x\0y",
    "x\x1b[31m",
    "x\u202etxt.exe",
    "x" * 256,
    b"\xff\xfe",
)


async def test_names_that_could_be_paths_or_hide_something_are_refused(router: Any, path: Path) -> None:
    for name in HOSTILE:
        answer = await sent(router.http_url, form(PURPOSE, part("file", b"x", name)))
        assert (answer.status, answer.error["code"]) == (400, "invalid_filename"), name
    harmless = await sent(router.http_url, form(PURPOSE, part("file", b"x", '...and so on; "x".jsonl')))
    assert harmless.status == 200
    await eventually(lambda: kept(path) == (1, 1, 1))


BROKEN = (
    (b"", "invalid_form"),
    (b"no form at all", "invalid_form"),
    (PURPOSE + FILE, "invalid_form"),
    (PURPOSE + FILE + f"--{BOUNDARY}x\r\n".encode(), "invalid_form"),
    (form(FILE), "missing_required_parameter"),
    (form(PURPOSE), "missing_required_parameter"),
    (form(PURPOSE, FILE, FILE), "invalid_value"),
    (form(PURPOSE, PURPOSE, FILE), "invalid_value"),
    (form(PURPOSE, part("file", b"{}")), "invalid_value"),
    (form(PURPOSE, part("other", b"{}", "x")), "unknown_parameter"),
    (form(PURPOSE, part("colour", b"red"), FILE), "unknown_parameter"),
    (form(part("purpose", b"b" * 2_000), FILE), "invalid_form"),
    (form(*[PURPOSE] * 20), "invalid_form"),
    (form(PURPOSE, FILE).replace(b"content-disposition", b"x" * 9_000), "invalid_form"),
)


async def test_forms_that_are_broken_are_refused_and_leave_nothing(router: Any, path: Path) -> None:
    for body, code in BROKEN:
        answer = await sent(router.http_url, body)
        assert (answer.status, answer.error["code"]) == (400, code), body[:200]
    for kind in ("application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 100):
        answer = await sent(router.http_url, form(PURPOSE, FILE), kind=kind)
        assert answer.status == (415 if "json" in kind else 400)
    await nothing_left(path)


async def test_a_file_that_is_too_large_is_refused_whatever_it_says_of_its_length(
    router: Any, path: Path
) -> None:
    told = await sent(router.http_url, form(PURPOSE, part("file", b"x" * (2 * MOST), "x")))
    assert (told.status, told.error["code"]) == (413, "request_too_large")
    connection = await RawConnection.open(router.http_url)
    connection.send(
        "POST /v1/files HTTP/1.1",
        "host: door",
        f"content-type: multipart/form-data; boundary={BOUNDARY}",
        "transfer-encoding: chunked",
    )
    body = form(PURPOSE, part("file", b"x" * (MOST + 1), "x"))
    connection.writer.write(b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (413, "file_too_large")
    connection.close()
    whole = await sent(router.http_url, form(PURPOSE, part("file", b"x" * MOST, "x")))
    assert (whole.status, whole.json()["bytes"]) == (200, MOST)
    await eventually(lambda: kept(path) == (1, 3, MOST))


async def begun(url: str) -> RawConnection:
    """An upload of which a chunk has come, and more is to come."""
    connection = await RawConnection.open(url)
    body = PURPOSE + part("file", b"x" * (CHUNK_BYTES + 10), "x")
    head = f"content-type: multipart/form-data; boundary={BOUNDARY}"
    connection.send("POST /v1/files HTTP/1.1", "host: door", head, "content-length: 2000000", body=body)
    return connection


async def test_an_upload_that_is_cut_off_leaves_nothing(router: Any, client: AsyncOpenAI, path: Path) -> None:
    connection = await begun(router.http_url)
    await eventually(lambda: kept(path)[1] == 1, what="a chunk is kept")
    assert (await client.files.list()).data == []
    connection.writer.transport.abort()
    await nothing_left(path)


async def test_an_upload_that_stands_still_is_ended(router: Any, path: Path) -> None:
    connection = await RawConnection.open(router.http_url)
    head = f"content-type: multipart/form-data; boundary={BOUNDARY}"
    body = PURPOSE + part("file", b"x" * 100, "x")
    connection.send("POST /v1/files HTTP/1.1", "host: door", head, "content-length: 2000000", body=body)
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    connection.close()
    await nothing_left(path)


async def test_a_compressed_form_is_refused_by_its_coding(router: Any, path: Path) -> None:
    connection = await RawConnection.open(router.http_url)
    kind = f"content-type: multipart/form-data; boundary={BOUNDARY}"
    body = form(PURPOSE, FILE)
    lines = ("host: door", kind, "content-encoding: br", f"content-length: {len(body)}")
    connection.send("POST /v1/files HTTP/1.1", *lines, body=body)
    answer = await connection.answer()
    connection.close()
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")
    assert "'br'" in answer.error["message"]
    await nothing_left(path)


async def test_uploads_at_once_are_bounded(router: Any, path: Path) -> None:
    open_ones = [await begun(router.http_url) for _ in range(32)]
    await eventually(lambda: kept(path)[1] == 32, what="all have begun")
    answer = await sent(router.http_url, form(PURPOSE, FILE))
    assert (answer.status, answer.error["code"]) == (429, "too_many_files_uploaded")
    assert answer.headers["retry-after"] == "1"
    for one in open_ones:
        one.writer.transport.abort()
    await nothing_left(path)

    async def taken() -> bool:
        return (await sent(router.http_url, form(PURPOSE, FILE))).status == 200

    await eventually(taken, what="there is room for another one")


async def test_a_router_without_a_queue_says_so(start_router, controller) -> None:
    controller.add("m")
    url = (await start_router(http=ANY)).router.http_url
    for path in ("/v1/files", "/v1/batches"):
        answer = await get(url, path)
        assert (answer.status, answer.error["code"]) == (501, "no_batch_queue")
        assert "another one of its cluster may" in answer.error["message"]
