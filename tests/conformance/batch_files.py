"""Files in a batch queue's store: handed in by chunks, listed, read, forgotten."""

from __future__ import annotations

import asyncio

import pytest

from chiron.batch.contract import BatchQueue, QueueFullError, TenantFullError
from chiron.batch.filing import FileHead, FileKey, FileKind, FileStateError, StoredFile, UnknownFileError
from chiron.batch.records import Limits, TenantLimits
from tests.conformance.batch_cases import Advance, BatchCase, OpenQueue, items, sealed, sweep_all

FILE: FileKey = ("acme", "file-1")
UPLOAD_S = 100.0
EXPIRES_S = 2_000.0
HEAD = FileHead("lines.jsonl", EXPIRES_S)


async def stored(queue: BatchQueue, *chunks: bytes, key: FileKey = FILE) -> StoredFile:
    """A file of these chunks."""
    await queue.files.begin(key)
    for number, chunk in enumerate(chunks):
        await queue.files.write(key, number, chunk)
    return await queue.files.complete(key, HEAD, len(chunks))


async def content(queue: BatchQueue, key: FileKey = FILE) -> bytes:
    found, number = b"", 0
    while chunk := await queue.files.read(key, number):
        found += chunk
        number += 1
    return found


async def stored_bytes(queue: BatchQueue, tenant: str = "acme") -> int:
    return sum(one.stored_bytes for one in await queue.usage(tenant))


async def ids(queue: BatchQueue, tenant: str = "acme", **options: object) -> list[str]:
    return [one.file_id for one in await queue.files.page(tenant, **{"limit": 100, **options})]  # type: ignore[arg-type]


class BatchFilesSuite(BatchCase):
    async def test_a_file_is_what_was_handed_in_also_after_a_restart(self, open_queue: OpenQueue) -> None:
        queue = await open_queue()
        now = await queue.now()
        made = await stored(queue, b"first\n", b"\0\xff second")
        await queue.close()
        queue = await open_queue()
        assert await queue.files.get(FILE) == made
        assert (made.name, made.kind, made.size, made.chunks) == ("lines.jsonl", FileKind.UPLOAD, 15, 2)
        assert made.created == pytest.approx(now, abs=5)
        assert made.expires == made.created + EXPIRES_S
        assert await content(queue) == b"first\n\0\xff second"
        assert await stored_bytes(queue) == 15
        await queue.close()

    async def test_an_upload_is_not_there_before_it_is_complete(self, queue: BatchQueue) -> None:
        await queue.files.begin(FILE)
        await queue.files.write(FILE, 0, b"some")
        assert await ids(queue) == []
        for call in (queue.files.get(FILE), queue.files.read(FILE, 0)):
            with pytest.raises(UnknownFileError, match="no file 'file-1' of tenant 'acme'"):
                await call
        assert await stored_bytes(queue) == 4

    async def test_a_call_made_again_happens_once(self, queue: BatchQueue) -> None:
        for _ in range(2):
            await queue.files.begin(FILE)
        for number in (0, 0, 1, 0, 1):
            await queue.files.write(FILE, number, b"%d" % number)
        made = [await queue.files.complete(FILE, HEAD, 2) for _ in range(2)]
        await queue.files.write(FILE, 1, b"1")
        assert made[0] == made[1]
        assert await content(queue) == b"01"
        assert await stored_bytes(queue) == 2

    async def test_chunks_that_do_not_follow_each_other_are_refused(self, queue: BatchQueue) -> None:
        with pytest.raises(UnknownFileError):
            await queue.files.write(FILE, 0, b"a")
        await queue.files.begin(FILE)
        with pytest.raises(FileStateError, match="0 chunks: number 1 is not the next"):
            await queue.files.write(FILE, 1, b"b")
        await queue.files.write(FILE, 0, b"a")
        with pytest.raises(FileStateError, match="has 1 chunks, not 2"):
            await queue.files.complete(FILE, HEAD, 2)
        await queue.files.complete(FILE, HEAD, 1)
        with pytest.raises(FileStateError, match="is complete"):
            await queue.files.write(FILE, 1, b"b")
        with pytest.raises(FileStateError, match="is complete"):
            await queue.files.begin(FILE)

    async def test_an_empty_file_is_a_file(self, queue: BatchQueue) -> None:
        assert (await stored(queue)).size == 0
        assert await content(queue) == b""

    async def test_files_belong_to_their_tenant(self, queue: BatchQueue) -> None:
        await stored(queue, b"ours")
        await stored(queue, b"theirs", key=("other", "file-1"))
        assert await content(queue) == b"ours"
        assert await content(queue, ("other", "file-1")) == b"theirs"
        assert await ids(queue, "nobody") == []
        with pytest.raises(UnknownFileError):
            await queue.files.delete(("nobody", "file-1"))
        await queue.files.delete(FILE)
        assert await ids(queue, "other") == ["file-1"]

    async def test_pages_go_on_after_an_id_that_may_be_gone(self, queue: BatchQueue) -> None:
        for number in (3, 1, 2, 5, 4):
            await stored(queue, b"x", key=("acme", f"file-{number}"))
        assert await ids(queue) == [f"file-{number}" for number in (5, 4, 3, 2, 1)]
        assert await ids(queue, limit=2, ascending=True) == ["file-1", "file-2"]
        await queue.files.delete(("acme", "file-3"))
        assert await ids(queue, limit=2, after="file-3") == ["file-2", "file-1"]
        assert await ids(queue, limit=2, after="file-3", ascending=True) == ["file-4", "file-5"]
        assert await ids(queue, kinds=(FileKind.OUTPUT, FileKind.ERRORS)) == []
        assert len(await ids(queue, kinds=(FileKind.UPLOAD,))) == 4

    async def test_a_file_that_is_deleted_takes_no_room(self, queue: BatchQueue) -> None:
        await stored(queue, b"a" * 1000, b"b" * 1000)
        await queue.files.delete(FILE)
        assert await stored_bytes(queue) == 0
        for call in (queue.files.get(FILE), queue.files.read(FILE, 0), queue.files.delete(FILE)):
            with pytest.raises(UnknownFileError):
                await call
        await sweep_all(queue)
        await stored(queue, b"new")
        assert await content(queue) == b"new"

    async def test_who_waits_for_changes_hears_of_a_deletion(self, queue: BatchQueue) -> None:
        await stored(queue, b"some")
        changes = queue.changes()
        await anext(changes)
        await queue.files.delete(FILE)
        async with asyncio.timeout(30):
            while ("acme", "") not in await anext(changes):
                pass

    async def test_an_upload_that_is_given_up_goes_at_once(self, queue: BatchQueue) -> None:
        await queue.files.begin(FILE)
        await queue.files.write(FILE, 0, b"some")
        await queue.files.delete(FILE)
        assert await stored_bytes(queue) == 0
        with pytest.raises(UnknownFileError):
            await queue.files.complete(FILE, HEAD, 1)

    async def test_an_upload_whose_chunks_have_stopped_coming_is_forgotten(
        self, open_queue: OpenQueue, advance: Advance
    ) -> None:
        queue = await open_queue(Limits(upload_s=UPLOAD_S))
        await queue.files.begin(FILE)
        for number in range(3):
            await advance(0.9 * UPLOAD_S)
            await sweep_all(queue)
            await queue.files.write(FILE, number, b"some")
        swept = await sweep_all(queue)
        assert swept.again_s <= UPLOAD_S
        await advance(UPLOAD_S)
        await sweep_all(queue)
        assert await stored_bytes(queue) == 0
        with pytest.raises(UnknownFileError):
            await queue.files.write(FILE, 3, b"more")
        await queue.close()

    async def test_a_file_is_forgotten_when_it_expires(self, queue: BatchQueue, advance: Advance) -> None:
        await stored(queue, b"some")
        await advance(0.9 * EXPIRES_S)
        assert 0 < (await sweep_all(queue)).again_s <= 0.1 * EXPIRES_S
        assert await content(queue) == b"some"
        await advance(0.1 * EXPIRES_S)
        await sweep_all(queue)
        assert await ids(queue) == []
        assert await stored_bytes(queue) == 0

    async def test_files_count_against_the_limits_of_tenant_and_queue(self, open_queue: OpenQueue) -> None:
        queue = await open_queue(Limits(stored_bytes=250))
        own = TenantLimits(stored_bytes=150)
        await queue.files.begin(FILE)
        await queue.files.write(FILE, 0, b"a" * 100, own)
        with pytest.raises(TenantFullError, match="100 stored bytes; 51 more exceed the limit of 150"):
            await queue.files.write(FILE, 1, b"b" * 51, own)
        await queue.files.write(FILE, 1, b"b" * 50, own)
        other = ("other", "file-1")
        await queue.files.begin(other)
        with pytest.raises(QueueFullError, match="the queue has 150 stored bytes"):
            await queue.files.write(other, 0, b"c" * 101, own)
        await queue.files.delete(FILE)
        await queue.files.write(other, 0, b"c" * 101, own)
        await queue.close()

    async def test_items_and_files_of_a_tenant_share_its_bytes(self, queue: BatchQueue) -> None:
        await sealed(queue, items(0, 1))
        held = await stored_bytes(queue)
        await queue.files.begin(FILE)
        with pytest.raises(TenantFullError):
            await queue.files.write(FILE, 0, b"abc", TenantLimits(stored_bytes=held + 2))

    async def test_uploads_at_the_same_time_do_not_mix(self, queue: BatchQueue) -> None:
        async def one(number: int) -> None:
            key = ("acme", f"file-{number}")
            await stored(queue, *(b"%d-%d;" % (number, chunk) for chunk in range(4)), key=key)

        await asyncio.gather(*map(one, range(8)))
        for number in range(8):
            found = await content(queue, ("acme", f"file-{number}"))
            assert found == b"".join(b"%d-%d;" % (number, chunk) for chunk in range(4))

    async def test_a_large_file_is_removed_in_slices(self, queue: BatchQueue) -> None:
        await stored(queue, *[b"x" * (12 << 20)] * 4)
        await queue.files.delete(FILE)
        rounds = 0
        while (await queue.sweep()).again_s == 0:
            rounds += 1
        assert 2 <= rounds < 10
