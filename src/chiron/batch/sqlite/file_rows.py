"""How a file lies in its row, and its chunks in theirs."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from chiron.batch.filing import FileKey, FileKind, StoredFile


class FileRow(NamedTuple):
    """A row of `files`, its columns in this order."""

    no: int
    tenant: str
    file_id: str
    kept: int
    kind: int
    name: str
    size: int
    chunks: int
    created: float
    expires: float
    batch: int | None

    @property
    def key(self) -> FileKey:
        """Tenant and id."""
        return self.tenant, self.file_id


FILE_COLUMNS = ", ".join(f"f.{name}" for name in FileRow._fields)
_BY_KEY = f"SELECT {FILE_COLUMNS} FROM files f WHERE f.tenant = ? AND f.file_id = ?"
_BATCH_ID = "SELECT batch_id FROM batches WHERE no = ?"


def file_by_key(db: sqlite3.Connection, key: FileKey) -> FileRow | None:
    """The row of a file or an upload; None: there is none."""
    row = db.execute(_BY_KEY, key).fetchone()
    return FileRow._make(row) if row else None


def to_file(db: sqlite3.Connection, row: FileRow) -> StoredFile:
    """The file as the contract has it."""
    batch_id = "" if row.batch is None else db.execute(_BATCH_ID, (row.batch,)).fetchone()[0]
    return StoredFile(
        file_id=row.file_id,
        tenant=row.tenant,
        kind=FileKind(row.kind),
        name=row.name,
        size=row.size,
        chunks=row.chunks,
        created=row.created,
        expires=row.expires,
        batch_id=batch_id,
    )
