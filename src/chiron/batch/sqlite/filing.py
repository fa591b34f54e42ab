"""Files: handed in, read and forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from chiron.batch.filing import FileHead, FileKey, FileKind, StoredFile
from chiron.batch.integrity import chunk_checksum
from chiron.batch.receipt import completed, damaged_chunk, other_chunk, other_length, unknown_file
from chiron.batch.records import TenantLimits
from chiron.batch.sqlite.failures import is_damage
from chiron.batch.sqlite.file_rows import FILE_COLUMNS, FileRow, file_by_key, to_file
from chiron.batch.sqlite.limits import check_limits
from chiron.batch.sqlite.rows import row_id
from chiron.batch.sqlite.transaction import Transaction

_BEGIN = """INSERT INTO files (tenant, file_id, kind, created, touched) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (tenant, file_id) DO NOTHING"""
_GROW = "UPDATE files SET size = size + ?, chunks = chunks + 1, touched = ? WHERE no = ?"
_COMPLETE = "UPDATE files SET kept = 1, name = ?, expires = ? WHERE no = ?"
_PAGE = """SELECT {columns} FROM files f WHERE f.tenant = ? AND f.file_id {side} ? AND f.kept = 1
    AND f.kind IN ({kinds}) ORDER BY f.file_id {order} LIMIT ?"""
_LAST = "\U0010ffff"


def _known(row: FileRow | None, key: FileKey) -> FileRow:
    if row is None:
        raise unknown_file(key)
    return row


def begin(tx: Transaction, key: FileKey) -> None:
    """As the contract has it."""
    tx.db.execute(_BEGIN, (*key, int(FileKind.UPLOAD), tx.now, tx.now))
    if _known(file_by_key(tx.db, key), key).kept:
        raise completed(key[1])


def write(tx: Transaction, key: FileKey, chunk: int, data: bytes, limits: TenantLimits) -> None:
    """As the contract has it."""
    row = _known(file_by_key(tx.db, key), key)
    if chunk < row.chunks:
        return
    if row.kept:
        raise completed(row.file_id)
    if chunk > row.chunks:
        raise other_chunk(row.file_id, chunk, row.chunks)
    check_limits(tx, row.tenant, limits, size=len(data))
    checksum = chunk_checksum(row.no, chunk, data)
    tx.db.execute("INSERT INTO chunks VALUES (?, ?, ?)", (row_id(row.no, chunk), data, checksum))
    tx.db.execute(_GROW, (len(data), tx.now, row.no))
    tx.stores(row.tenant, len(data))


def complete(tx: Transaction, key: FileKey, head: FileHead, chunks: int) -> StoredFile:
    """As the contract has it."""
    row = _known(file_by_key(tx.db, key), key)
    if row.chunks != chunks:
        raise other_length(row.file_id, row.chunks, chunks)
    if not row.kept:
        tx.db.execute(_COMPLETE, (head.name, row.created + head.expires_s, row.no))
    return get(tx.db, key)


def get(db: sqlite3.Connection, key: FileKey) -> StoredFile:
    """As the contract has it."""
    return to_file(db, _kept(db, key))


def _kept(db: sqlite3.Connection, key: FileKey) -> FileRow:
    row = file_by_key(db, key)
    return _known(row if row and row.kept else None, key)


def page(
    db: sqlite3.Connection,
    tenant: str,
    limit: int,
    after: str,
    ascending: bool,
    kinds: Collection[FileKind],
) -> list[StoredFile]:
    """As the contract has it."""
    query = _PAGE.format(
        columns=FILE_COLUMNS,
        side=">" if ascending else "<",
        order="ASC" if ascending else "DESC",
        kinds=", ".join(str(int(kind)) for kind in kinds),
    )
    rows = db.execute(query, (tenant, after or ("" if ascending else _LAST), limit)).fetchall()
    return [to_file(db, FileRow._make(row)) for row in rows]


def read(db: sqlite3.Connection, key: FileKey, chunk: int) -> bytes:
    """As the contract has it."""
    row = _kept(db, key)
    if chunk >= row.chunks:
        return b""
    try:
        found = db.execute(
            "SELECT data, checksum FROM chunks WHERE id = ?", (row_id(row.no, chunk),)
        ).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise damaged_chunk(row.file_id, chunk) from error
    if found is None or found[1] != chunk_checksum(row.no, chunk, found[0]):
        raise damaged_chunk(row.file_id, chunk)
    data: bytes = found[0]
    return data


def delete(tx: Transaction, key: FileKey) -> None:
    """As the contract has it."""
    forget_file(tx, _known(file_by_key(tx.db, key), key))


def forget_file(tx: Transaction, row: FileRow) -> None:
    """Takes a file or an upload out of the store; `sweep` removes its bytes, in slices."""
    tx.db.execute("DELETE FROM files WHERE no = ?", (row.no,))
    # Whoever sweeps looks when something has changed.
    tx.changed.add((row.tenant, ""))
    if row.batch is not None:
        tx.db.execute("INSERT OR IGNORE INTO emptying (batch, kind) VALUES (?, ?)", (row.batch, row.kind))
    elif row.chunks:
        tx.db.execute("INSERT INTO doomed_files VALUES (?)", (row.no,))
        tx.stores(row.tenant, -row.size)
