"""The tables of a queue: earlier versions are gone on with, and what is deleted leaves no row."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from chiron.batch.contract import BatchQueue
from chiron.batch.filing import FileHead
from chiron.batch.opening import open_queue
from chiron.batch.postgres import PostgresBatchQueue
from chiron.batch.postgres import schema as postgres_schema
from chiron.batch.records import BatchState, Limits
from chiron.batch.sqlite import schema as sqlite_schema
from tests.conformance.batch_cases import KEY, done, indexes, item, sealed, session, sweep_all
from tests.conformance.batch_files import stored
from tests.conformance.batch_sourced import OUTPUT, VIEWS, ended, sourced
from tests.support.postgres_server import PostgresServer

BATCH = """INSERT INTO {} (tenant, batch_id, state, created, deadline, expire_late, fail_invalid, priority,
    items, touched, received, contiguous)
    VALUES ('acme', 'old', 1, 5.0, 9e9, {false}, {false}, 0, 0, 5.0, 0, 0)"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    try:
        made.start()
        yield made
    finally:
        made.close()


async def goes_on(queue: BatchQueue) -> None:
    """What the old version kept is there, and everything that is new works."""
    old = await queue.get(("acme", "old"))
    assert (old.state, old.created, old.source, old.closed) == (BatchState.RECEIVING, 5.0, "", None)
    assert await queue.adopt(1.0, 10) == []
    await sealed(queue)
    holder = await session(queue)
    claims = await queue.claim(holder, KEY, "chat", 10)
    assert indexes(claims) == [0, 1, 2, 3, 4]
    assert await queue.finish(holder, [done(claim) for claim in claims]) == []
    await queue.files.begin(("acme", "file-1"))
    await queue.files.write(("acme", "file-1"), 0, b"lines")
    await queue.files.complete(("acme", "file-1"), FileHead("lines", 100.0), 1)
    assert await queue.files.read(("acme", "file-1"), 0) == b"lines"
    assert (await queue.sweep()).forgotten == 1
    await queue.close()


async def test_a_sqlite_file_of_the_first_version_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    db = sqlite3.connect(path, isolation_level=None)
    sqlite_schema.prepare(db, str(path), sqlite_schema.STEPS[:1])
    db.execute(BATCH.format("batches", false=0))
    db.execute("INSERT INTO tenants (tenant, open_batches) VALUES ('acme', 1)")
    db.close()
    await goes_on(await open_queue(f"sqlite:{path}", Limits()))


async def test_a_postgres_schema_of_the_first_version_is_migrated(server: PostgresServer) -> None:
    schema = f"q{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server.url)
    await postgres_schema.prepare(db, schema, postgres_schema.STEPS[:1])
    await db.execute(BATCH.format(f"{schema}.batches", false="false"))
    await db.execute(f"INSERT INTO {schema}.tenants (tenant, open_batches) VALUES ('acme', 1)")
    await db.close()
    await goes_on(await PostgresBatchQueue.open(f"{server.url}?schema={schema}"))


ROWS = ("batches", "units", "runs", "items", "bodies", "checkpoints", "results", "doomed")
ROWS_OF_FILES = ("files", "chunks", "doomed_files", "emptying")


async def comes_and_goes(queue: BatchQueue) -> None:
    """Uploads that end well and ill; batches that are deleted, and a refused one, which is kept as such."""
    holder = await session(queue)
    for name in ("kept", "given-up"):
        await stored(queue, b"some", b"more", key=("acme", name))
    await queue.files.begin(("acme", "half"))
    await queue.files.write(("acme", "half"), 0, b"some")
    for batch_id in ("refused", "refused-and-deleted"):
        await queue.create(sourced(batch_id))
        await queue.append(("acme", batch_id), [item(0), item(2)])
        await queue.refuse(("acme", batch_id), "line 1 is wrong")
    await queue.delete(("acme", "refused-and-deleted"))
    await ended(queue, holder)
    await queue.finalize(KEY, VIEWS)
    for file_id in ("kept", "given-up", "half", OUTPUT[1]):
        await queue.files.delete(("acme", file_id))
    await queue.sweep()
    await queue.delete(KEY)
    await sweep_all(queue)
    await queue.end_session(holder)


async def test_nothing_is_left_in_sqlite_of_what_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue = await open_queue(f"sqlite:{path}", Limits())
    await comes_and_goes(queue)
    await queue.close()
    db = sqlite3.connect(path)
    left = {
        table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ROWS + ROWS_OF_FILES
    }
    assert left == dict.fromkeys(left, 0) | {"batches": 1}
    assert db.execute("SELECT open_batches, queued, stored_bytes FROM store").fetchone() == (0, 0, 0)
    assert db.execute("SELECT sum(stored_bytes), sum(queued) FROM tenants").fetchone() == (0, 0)
    db.close()


async def test_nothing_is_left_in_postgres_of_what_is_deleted(server: PostgresServer) -> None:
    schema = f"q{uuid.uuid4().hex[:12]}"
    queue = await PostgresBatchQueue.open(f"{server.url}?schema={schema}")
    await comes_and_goes(queue)
    await queue.close()
    db = await asyncpg.connect(server.url)
    left = {
        table: await db.fetchval(f"SELECT count(*) FROM {schema}.{table}") for table in ROWS + ROWS_OF_FILES
    }
    assert left == dict.fromkeys(left, 0) | {"batches": 1}
    sums = await db.fetchrow(
        f"SELECT sum(open_batches), sum(queued), sum(stored_bytes) FROM {schema}.tenants"
    )
    assert tuple(sums) == (0, 0, 0)
    await db.close()
