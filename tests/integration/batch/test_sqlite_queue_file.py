"""Which files a SQLite queue takes: one holder, its own schema, migrated or refused, whole."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from chiron.batch.contract import RefusedError, UnavailableError
from chiron.batch.sqlite import QueueClock, SqliteBatchQueue, schema
from tests.conformance.batch_cases import KEY, TTL_S, claim_one, items, new_batch, sealed, session, sweep_all
from tests.support.wait import eventually

ROOT = Path(__file__).parents[3]


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.db"


async def test_a_second_holder_is_refused_and_told_who_holds_it(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    with pytest.raises(RefusedError, match=f"held by process {os.getpid()} on "):
        await SqliteBatchQueue.open(path)
    await queue.create(new_batch())
    await queue.close()
    queue = await SqliteBatchQueue.open(path)
    assert (await queue.get(KEY)).batch_id == "b1"
    await queue.close()


async def test_a_holder_that_is_killed_holds_no_more(path: Path, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.batch_writer", str(tmp_path), cwd=ROOT
    )
    await eventually(lambda: (tmp_path / "said").exists() and (tmp_path / "said").stat().st_size)
    with pytest.raises(RefusedError, match=f"process {process.pid} on "):
        await SqliteBatchQueue.open(path)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await (await SqliteBatchQueue.open(path)).close()


async def test_sessions_end_with_the_process_that_began_them(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    key = await sealed(queue, items(0))
    claim = await claim_one(queue, await session(queue), key)
    await queue.close()
    queue = await SqliteBatchQueue.open(path)
    assert (await sweep_all(queue)).requeued == 1
    assert (await claim_one(queue, await session(queue), key)).lease.fence > claim.lease.fence
    await queue.close()


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(500)])
async def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes) -> None:
    write(path, content)
    with pytest.raises(RefusedError, match=r"queue\.db"):
        await SqliteBatchQueue.open(path)
    assert content_of(path) == content


async def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    with pytest.raises(RefusedError, match="not a batch queue"):
        await SqliteBatchQueue.open(path)


async def test_a_folder_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="cannot be opened"):
        await SqliteBatchQueue.open(tmp_path / "none" / "queue.db")


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    await (await SqliteBatchQueue.open(path)).close()
    newer = len(schema.STEPS) + 1
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {newer}")
    other.close()
    before = content_of(path)
    with pytest.raises(RefusedError, match=f"schema version {newer}"):
        await SqliteBatchQueue.open(path)
    assert content_of(path) == before


def _add_color(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE tenants ADD COLUMN color TEXT NOT NULL DEFAULT 'grey'")


def _add_color_and_break(db: sqlite3.Connection) -> None:
    _add_color(db)
    db.execute("UPDATE nowhere SET color = 'red'")


async def test_an_older_schema_is_migrated_in_one_transaction(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    await sealed(queue)
    await queue.close()
    db = sqlite3.connect(path, isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        schema.prepare(db, str(path), (*schema.STEPS, _add_color_and_break))
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS),)
    assert "color" not in {row[1] for row in db.execute("PRAGMA table_info(tenants)")}
    schema.prepare(db, str(path), (*schema.STEPS, _add_color))
    assert db.execute("PRAGMA user_version").fetchone() == (len(schema.STEPS) + 1,)
    assert db.execute("SELECT tenant, queued, color FROM tenants").fetchall() == [("acme", 5, "grey")]
    schema.prepare(db, str(path), (*schema.STEPS, _add_color))
    db.close()


async def test_what_a_queue_cannot_do_without_is_checked_as_it_is_opened(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    await queue.create(new_batch("a-batch-that-is-easily-found"))
    await queue.close()
    content = bytearray(content_of(path))
    page = content.index(b"a-batch-that-is-easily-found") // 4096 * 4096
    content[page : page + 100] = bytes(100)
    write(path, content)
    with pytest.raises(RefusedError, match="damaged"):
        await SqliteBatchQueue.open(path)
    remove(path)
    await (await SqliteBatchQueue.open(path)).close()


async def test_leases_lapse_also_while_the_wall_clock_has_gone_back(path: Path) -> None:
    wall, steady = [1_000_000.0], [0.0]
    clock = QueueClock(lambda: wall[0], lambda: steady[0])
    queue = await SqliteBatchQueue.open(path, clock=clock)
    key = await sealed(queue, items(0))
    await claim_one(queue, await session(queue), key)
    wall[0] -= 50_000.0
    assert await queue.now() == 1_000_000.0
    steady[0] += TTL_S + 1.0
    assert await queue.now() == 1_000_000.0 + TTL_S + 1.0
    assert (await sweep_all(queue)).requeued == 1
    await queue.close()
    queue = await SqliteBatchQueue.open(path, clock=QueueClock(lambda: wall[0], lambda: 0.0))
    assert await queue.now() >= 1_000_000.0 + TTL_S
    await queue.close()


async def test_a_closed_queue_says_so(path: Path) -> None:
    queue = await SqliteBatchQueue.open(path)
    await queue.close()
    with pytest.raises(UnavailableError, match="closed"):
        await queue.create(new_batch())
    with pytest.raises(UnavailableError, match="closed"):
        await queue.units()


async def test_nothing_is_accepted_into_a_file_that_is_gone(path: Path) -> None:
    """It would be on disk, and no other process would ever find it."""
    queue = await SqliteBatchQueue.open(path)
    await queue.create(new_batch())
    aside = path.with_suffix(".aside")
    os.rename(path, aside)
    with pytest.raises(UnavailableError, match="gone from its place"):
        await queue.append(KEY, items(0, 1))
    write(path, b"something else")
    with pytest.raises(UnavailableError, match="gone from its place"):
        await queue.append(KEY, items(0, 1))
    os.rename(aside, path)
    await queue.append(KEY, items(0, 1))
    assert (await queue.seal(KEY, 2)).counts.queued == 2
    await queue.close()
