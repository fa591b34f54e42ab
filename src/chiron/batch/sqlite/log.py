"""Keeps the write-ahead log from growing while there are always readers."""

from __future__ import annotations

import contextlib
import os
import sqlite3

CHECKPOINT_PAGES = 4_000
"""Pages of the log (4 KiB) from which on they are carried over into the file, as far as readers let them."""

LARGE_LOG_BYTES = 64 << 20
"""Size from which on readers are waited for, so that the log begins anew; it is cut to this size then."""

WAIT_MS = 1_000
"""How long. Reads of a queue take milliseconds; a shell that holds the file open for reading takes longer."""

PATIENCE = 64
"""Commits between two attempts, where a reader has not let go."""


class WriteAheadLog:
    """For the writer's connection and thread."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self._log = f"{path}-wal"
        self._rest = 0

    def bound(self) -> None:
        """To be called after a commit."""
        if self._rest:
            self._rest -= 1
            return
        with contextlib.suppress(OSError):
            if os.stat(self._log).st_size > LARGE_LOG_BYTES:
                self._begin_anew()

    def _begin_anew(self) -> None:
        (usual,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute(f"PRAGMA busy_timeout = {WAIT_MS}")
        try:
            (busy, _, _) = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            busy = 1  # The disk takes nothing at present; the next commit says so to its caller.
        self._rest = PATIENCE if busy else 0
        self._db.execute(f"PRAGMA busy_timeout = {usual}")
