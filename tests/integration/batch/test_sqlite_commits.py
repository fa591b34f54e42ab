"""How a SQLite queue writes: shared commits, a bounded log, a full disk, no look at more than it must."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import sqlite3
from pathlib import Path

import pytest

from chiron.batch.contract import BatchQueue, UnavailableError
from chiron.batch.records import BatchState, Return
from chiron.batch.sqlite import SqliteBatchQueue, file, log
from tests.conformance.batch_cases import (
    KEY,
    all_results,
    claim_one,
    done,
    item,
    items,
    new_batch,
    sealed,
    session,
    sweep_all,
)

FRAME = 24 + 4096
GROWING = "items|bodies|results|checkpoints|batches|units|runs|metadata"


def commits(path: Path) -> int:
    """Transactions in the log: frames that give the file's size after a commit."""
    content = Path(f"{path}-wal").read_bytes()
    frames = (content[at : at + 24] for at in range(32, len(content) - FRAME + 1, FRAME))
    return sum(int.from_bytes(frame[4:8], "big") > 0 for frame in frames)


def log_bytes(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def file_bytes(path: Path) -> int:
    return path.stat().st_size


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_writes_that_wait_share_a_commit(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    await queue.create(new_batch())
    before = commits(path)
    await asyncio.gather(*(queue.append(KEY, items(index)) for index in range(300)))
    assert (await queue.get(KEY)).counts.received == 300
    assert commits(path) - before < 100
    await queue.close()


# The log


async def test_the_log_is_bounded_while_there_are_always_readers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(log, "LARGE_LOG_BYTES", 1 << 20)
    queue = await SqliteBatchQueue.open(path)
    await queue.create(new_batch())
    going = True

    async def read() -> None:
        while going:
            await queue.get(KEY)

    readers = [asyncio.create_task(read()) for _ in range(3)]
    largest = 0
    for number in range(60):
        new = [dataclasses.replace(item(number * 50 + at), body=bytes(4_000)) for at in range(50)]
        await queue.append(KEY, new)
        largest = max(largest, log_bytes(path))
    going = False
    await asyncio.gather(*readers)
    assert file_bytes(path) > 8 << 20
    assert largest < 3 << 20
    await queue.close()


async def test_the_log_begins_anew_once_a_reader_from_outside_lets_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LARGE_LOG_BYTES", 1 << 20)
    monkeypatch.setattr(log, "WAIT_MS", 1)
    monkeypatch.setattr(log, "PATIENCE", 3)
    queue = await SqliteBatchQueue.open(path)
    await queue.create(new_batch())
    outside = sqlite3.connect(path, isolation_level=None)
    outside.execute("BEGIN")
    outside.execute("SELECT * FROM batches").fetchall()
    large = [dataclasses.replace(item(index), body=bytes(20_000)) for index in range(400)]
    for at in range(0, 400, 20):
        await queue.append(KEY, large[at : at + 20])
    assert log_bytes(path) > 4 << 20
    outside.execute("COMMIT")
    outside.close()
    for index in range(400, 410):
        await queue.append(KEY, items(index))
    assert log_bytes(path) < 2 << 20
    await queue.close()


# A full disk


async def limit_pages(queue: SqliteBatchQueue, pages: int) -> None:
    """What a full disk does: no page is added to the file."""
    await queue._writer.write(lambda tx: tx.db.execute(f"PRAGMA max_page_count = {pages}").fetchone())


async def test_a_full_disk_refuses_writes_and_nothing_else(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    key = await sealed(queue, items(*range(4)), new_batch("small"))
    await queue.create(new_batch())
    holder = await session(queue)
    claim = await claim_one(queue, holder, key)
    await limit_pages(queue, 1)  # as many as there are
    large = [dataclasses.replace(item(index), body=bytes(3_000)) for index in range(50)]
    with pytest.raises(UnavailableError, match="the disk is full") as caught:
        await queue.append(KEY, large)
    assert not caught.value.uncertain
    assert (await queue.get(KEY)).counts.received == 0
    assert [unit.queued for unit in await queue.units()] == [3]
    # What was refused takes nothing with it.
    answers = await asyncio.gather(
        queue.append(KEY, large), queue.renew(holder), queue.append(KEY, large), return_exceptions=True
    )
    assert [type(one) for one in answers] == [UnavailableError, type(None), UnavailableError]
    assert not await queue.finish(holder, [done(claim)])
    await limit_pages(queue, 1 << 30)
    assert await queue.append(KEY, large) == 50
    assert (await queue.seal(KEY, 50)).counts.contiguous == 50
    await queue.close()


# What a call looks at


async def every_call(queue: BatchQueue) -> None:
    key = await sealed(queue)
    holder = await session(queue)
    claims = await queue.claim(holder, key, "chat", 3)
    await queue.checkpoint(holder, [(claims[0].lease, b"x")])
    await queue.put_back(holder, [Return(claims[0].lease), Return(claims[1].lease, delay_s=5.0)])
    await queue.finish(holder, [done(claims[2])])
    await queue.renew(holder)
    await queue.append(key, items(0, 1))
    await queue.page("acme", limit=5)
    await queue.page("acme", limit=5, open_only=True)
    await queue.usage()
    await queue.usage("acme")
    await queue.units()
    await all_results(queue)
    await queue.result(key, "c2")
    at_once = new_batch("late", deadline_s=1e-9, expire_late=True)
    late = await sealed(queue, items(0), at_once)
    await queue.create(new_batch("bad"))
    await queue.append(("acme", "bad"), [item(3, failure=b"f"), item(0), item(1, failure=b"f")])
    await queue.append(("acme", "bad"), items(2))
    await queue.seal(("acme", "bad"), 4)
    await sweep_all(queue)
    assert (await queue.get(late)).state == BatchState.ENDED
    await queue.end_session(holder)
    await queue.cancel(key)
    await sweep_all(queue)
    await queue.delete(key)
    await queue.create(new_batch("gone"))
    await queue.discard(("acme", "gone"))
    await sweep_all(queue)


async def test_no_call_goes_through_a_table_that_grows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: set[str] = set()
    connect = file.QueueFile.connect

    def traced(self: file.QueueFile, *arguments: int) -> sqlite3.Connection:
        db = connect(self, *arguments)
        db.set_trace_callback(statements.add)
        return db

    monkeypatch.setattr(file.QueueFile, "connect", traced)
    queue = await SqliteBatchQueue.open(path)
    await every_call(queue)
    await queue.close()
    monkeypatch.undo()
    db = sqlite3.connect(path)
    scan = re.compile(rf"SCAN ({GROWING})( |$)(?!.*(to_|waiting_))")
    seen = 0
    for statement in statements:
        if not re.match(r"\s*(SELECT|INSERT|UPDATE|DELETE)", statement):
            continue
        plan = " / ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"))
        seen += "SEARCH" in plan
        assert not scan.search(plan), f"{statement}: {plan}"
        assert "TEMP B-TREE" not in plan, f"{statement}: {plan}"
    assert seen > 30
    db.close()
