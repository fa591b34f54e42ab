"""Files: handed in, read and forgotten."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import asyncpg

from chiron.batch.filing import FileHead, FileKey, FileKind, StoredFile
from chiron.batch.integrity import chunk_checksum
from chiron.batch.postgres.receiving import check_limits
from chiron.batch.postgres.transaction import Transaction
from chiron.batch.receipt import completed, damaged_chunk, other_chunk, other_length, unknown_file
from chiron.batch.records import TenantLimits


class FileRow(NamedTuple):
    """A row of `files`, its columns in this order."""

    no: int
    tenant: str
    file_id: str
    kept: bool
    kind: int
    name: str
    size: int
    chunks: int
    created: float
    expires: float
    batch: int | None


FILE_COLUMNS = ", ".join(f"f.{name}" for name in FileRow._fields)
_BY_KEY = f"SELECT {FILE_COLUMNS} FROM files f WHERE f.tenant = $1 AND f.file_id = $2"
_TOLD = """SELECT f.file_id, f.tenant, f.kind, f.name, f.size, f.chunks, f.created, f.expires,
    coalesce(b.batch_id, '') FROM files f LEFT JOIN batches b ON b.no = f.batch
    WHERE f.tenant = $1 AND f.kept"""
_BEGIN = """INSERT INTO files (tenant, file_id, kind, created, touched) VALUES ($1, $2, $3, $4, $4)
    ON CONFLICT (tenant, file_id) DO NOTHING"""
_GROW = "UPDATE files SET size = size + $2, chunks = chunks + 1, touched = $3 WHERE no = $1"
_COMPLETE = "UPDATE files SET kept = true, name = $2, expires = $3 WHERE no = $1"
_LAST = "\U0010ffff"


async def _by_key(db: asyncpg.Connection, key: FileKey, *, lock: bool = False) -> FileRow:
    row = await db.fetchrow(_BY_KEY + (" FOR UPDATE" if lock else ""), *key)
    if row is None:
        raise unknown_file(key)
    return FileRow(*row)


async def begin(tx: Transaction, key: FileKey) -> None:
    """As the contract has it."""
    await tx.db.execute(_BEGIN, *key, int(FileKind.UPLOAD), tx.now)
    if (await _by_key(tx.db, key)).kept:
        raise completed(key[1])


async def write(tx: Transaction, key: FileKey, chunk: int, data: bytes, limits: TenantLimits) -> None:
    """As the contract has it."""
    row = await _by_key(tx.db, key, lock=True)
    if chunk < row.chunks:
        return
    if row.kept:
        raise completed(row.file_id)
    if chunk > row.chunks:
        raise other_chunk(row.file_id, chunk, row.chunks)
    checksum = chunk_checksum(row.no, chunk, data)
    await tx.db.execute("INSERT INTO chunks VALUES ($1, $2, $3, $4)", row.no, chunk, data, checksum)
    await tx.db.execute(_GROW, row.no, len(data), tx.now)
    # Last: it locks the tenant's row.
    await check_limits(tx, row.tenant, limits, size=len(data))
    tx.stores(row.tenant, len(data))


async def complete(tx: Transaction, key: FileKey, head: FileHead, chunks: int) -> None:
    """As the contract has it; the file is to be read afterwards."""
    row = await _by_key(tx.db, key, lock=True)
    if row.chunks != chunks:
        raise other_length(row.file_id, row.chunks, chunks)
    if not row.kept:
        await tx.db.execute(_COMPLETE, row.no, head.name, row.created + head.expires_s)


def _told(row: asyncpg.Record) -> StoredFile:
    file_id, tenant, kind, *rest = row
    return StoredFile(file_id, tenant, FileKind(kind), *rest)


async def get(db: asyncpg.Connection, key: FileKey) -> StoredFile:
    """As the contract has it."""
    row = await db.fetchrow(f"{_TOLD} AND f.file_id = $2", *key)
    if row is None:
        raise unknown_file(key)
    return _told(row)


async def page(
    db: asyncpg.Connection,
    tenant: str,
    limit: int,
    after: str,
    ascending: bool,
    kinds: Collection[FileKind],
) -> list[StoredFile]:
    """As the contract has it."""
    side, order = (">", "ASC") if ascending else ("<", "DESC")
    query = (
        f"{_TOLD} AND f.file_id {side} $2 AND f.kind = ANY($3::int2[]) ORDER BY f.file_id {order} LIMIT $4"
    )
    start = after or ("" if ascending else _LAST)
    return [_told(row) for row in await db.fetch(query, tenant, start, [int(kind) for kind in kinds], limit)]


async def read(db: asyncpg.Connection, key: FileKey, chunk: int) -> bytes:
    """As the contract has it."""
    row = await _by_key(db, key)
    if not row.kept:
        raise unknown_file(key)
    if chunk >= row.chunks:
        return b""
    found = await db.fetchrow(
        "SELECT data, checksum FROM chunks WHERE file = $1 AND chunk = $2", row.no, chunk
    )
    if found is None or found["checksum"] != chunk_checksum(row.no, chunk, found["data"]):
        raise damaged_chunk(row.file_id, chunk)
    data: bytes = found["data"]
    return data


async def delete(tx: Transaction, key: FileKey) -> None:
    """As the contract has it."""
    await forget_file(tx, await _by_key(tx.db, key, lock=True))


async def forget_file(tx: Transaction, row: FileRow) -> None:
    """Takes a file or an upload, locked, out of the store; `sweep` removes its bytes, in slices."""
    await tx.db.execute("DELETE FROM files WHERE no = $1", row.no)
    # Whoever sweeps looks when something has changed.
    tx.changed.add((row.tenant, ""))
    if row.batch is not None:
        await tx.db.execute(
            "INSERT INTO emptying (batch, kind) VALUES ($1, $2) ON CONFLICT DO NOTHING", row.batch, row.kind
        )
    elif row.chunks:
        await tx.db.execute("INSERT INTO doomed_files VALUES ($1)", row.no)
        tx.stores(row.tenant, -row.size)
