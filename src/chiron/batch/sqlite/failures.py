"""What an error of SQLite means to a caller."""

from __future__ import annotations

import sqlite3

from chiron.batch.contract import BatchQueueError, RefusedError, UnavailableError

_REFUSED = {
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_NOTADB: "is not a SQLite file",
    sqlite3.SQLITE_PERM: "may not be accessed",
    sqlite3.SQLITE_READONLY: "may not be written",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
}
_UNAVAILABLE = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_NOMEM: "there is no memory",
    sqlite3.SQLITE_BUSY: "another program holds a write lock",
    sqlite3.SQLITE_LOCKED: "another program holds a write lock",
}


def code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0: the error is not SQLite's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Whether a page of the file is not as it was written."""
    return code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_unavailable(error: sqlite3.Error) -> bool:
    """Whether the store may take the same write later."""
    return code(error) in _UNAVAILABLE


def translate(error: sqlite3.Error, path: str, *, uncertain: bool = False) -> BatchQueueError | sqlite3.Error:
    """The contract's error; the error itself where it is a fault of this program."""
    if text := _UNAVAILABLE.get(code(error)):
        return UnavailableError(f"batch queue {path}: {text} ({error})", uncertain=uncertain)
    if text := _REFUSED.get(code(error)):
        return RefusedError(f"batch queue {path} {text} ({error})")
    return error
