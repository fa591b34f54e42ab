"""The file of a queue: who holds it, whether it can be used, and how it is connected to."""

from __future__ import annotations

import sqlite3

from chiron.batch.contract import RefusedError
from chiron.batch.sqlite.clock import QueueClock
from chiron.batch.sqlite.failures import translate
from chiron.batch.sqlite.lock import FileLock
from chiron.batch.sqlite.log import CHECKPOINT_PAGES, LARGE_LOG_BYTES
from chiron.batch.sqlite.schema import OLDEST_SQLITE, check, prepare

BUSY_MS = 5_000
"""How long a write waits for another program that writes to the file, as `sqlite3` at a shell may."""

WRITER_CACHE_KIB = 32_768
READER_CACHE_KIB = 4_096


class QueueFile:
    """A queue's file, held by this process."""

    def __init__(self, path: str, clock: QueueClock) -> None:
        """Opens, checks and migrates the file; ends the sessions of the process that held it before.

        Raises:
            RefusedError, UnavailableError: as `SqliteBatchQueue.open`.
        """
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            oldest = ".".join(map(str, OLDEST_SQLITE))
            raise RefusedError(
                f"SQLite {sqlite3.sqlite_version} is too old for a batch queue: {oldest} is needed"
            )
        self.path = path
        try:
            self._lock = FileLock(path)
        except OSError as error:
            raise RefusedError(f"batch queue {path} cannot be opened: {error}") from error
        try:
            self._prepare(clock)
        except sqlite3.Error as error:
            self._lock.release()
            raise translate(error, path) from error
        except BaseException:
            self._lock.release()
            raise

    def connect(self, cache_kib: int = READER_CACHE_KIB) -> sqlite3.Connection:
        """A connection of its own. Raises sqlite3.Error."""
        db = sqlite3.connect(
            self.path,
            timeout=BUSY_MS / 1000,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            f"journal_size_limit = {LARGE_LOG_BYTES}",
            f"cache_size = -{cache_kib}",
            "temp_store = MEMORY",
            "secure_delete = FAST",
        ):
            db.execute(f"PRAGMA {pragma}")
        return db

    def close(self) -> None:
        """Lets another process have the file."""
        self._lock.release()

    def _prepare(self, clock: QueueClock) -> None:
        db = self.connect()
        try:
            prepare(db, self.path)
            check(db, self.path)
            (seen,) = db.execute("SELECT clock FROM store").fetchone()
            clock.not_before(seen)
            db.execute("UPDATE sessions SET lapses = 0")
        finally:
            db.close()
