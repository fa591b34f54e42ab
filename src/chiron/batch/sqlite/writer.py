"""The one thread that writes: it commits together what has come in the meantime."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from chiron.batch.contract import UnavailableError
from chiron.batch.records import BatchKey, Limits
from chiron.batch.sqlite.clock import QueueClock
from chiron.batch.sqlite.content import Unreadable
from chiron.batch.sqlite.failures import code, is_unavailable, translate
from chiron.batch.sqlite.log import WriteAheadLog
from chiron.batch.sqlite.transaction import Transaction

T = TypeVar("T")
Write = Callable[[Transaction], Any]

GROUP_WRITES = 512
GROUP_S = 0.05
"""A group is committed once it has taken so long, whatever else waits."""


@dataclass(slots=True, eq=False)
class _Waiting:
    write: Write
    answer: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Takes writes from an event loop; answers each once it is on disk.

    Writes of a group do not touch each other: each has a savepoint, and where the disk takes no group it is
    asked to take each alone.
    """

    def __init__(
        self,
        db: sqlite3.Connection,
        path: str,
        clock: QueueClock,
        limits: Limits,
        changed: Callable[[set[BatchKey]], None],
    ) -> None:
        """`changed` is called on the event loop. The thread runs from now on, and closes `db` at its end."""
        self._db = db
        self._path = path
        self._file = os.stat(path)
        self._log = WriteAheadLog(db, path)
        self._clock = clock
        self._limits = limits
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._now = 0.0
        self._unreadable: Unreadable = set()
        self._thread = threading.Thread(target=self._run, name="batch-queue-writer", daemon=True)
        self._thread.start()

    async def write(self, write: Callable[[Transaction], T]) -> T:
        """Returns what `write` returns, once that is on disk.

        Raises its errors, UnavailableError, RefusedError.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        with self._wake:
            if self._closed:
                raise UnavailableError(f"batch queue {self._path} is closed")
            self._waiting.append(_Waiting(write, answer))
            self._wake.notify()
        return await answer

    async def close(self) -> None:
        """Finishes what waits, and ends the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if not self._waiting:
                    break
            self._commit_group()
            self._log.bound()
        self._db.close()

    def _commit_group(self) -> None:
        group: list[_Waiting] = []
        changed: set[BatchKey] = set()
        try:
            self._begin()
            until = time.monotonic() + GROUP_S
            while self._waiting and len(group) < GROUP_WRITES and time.monotonic() < until:
                group.append(self._waiting.popleft())
                self._do(group[-1], changed)
            self._db.execute("COMMIT")
        except Exception as error:
            self._rollback()
            changed = set()
            if group:
                for one in group:
                    changed |= self._alone(one)
            else:
                group = [self._waiting.popleft()]
                self._fail(group[0], error)
        self._tell(group, changed)

    def _alone(self, one: _Waiting) -> set[BatchKey]:
        """Commits a write by itself, the second time without a look at pages that it cannot read."""
        while True:
            changed: set[BatchKey] = set()
            one.error = None
            known = len(self._unreadable)
            try:
                self._begin()
                self._do(one, changed)
                self._db.execute("COMMIT")
            except Exception as error:
                self._rollback()
                if len(self._unreadable) > known:
                    continue
                self._fail(one, error)
                return set()
            return changed

    def _begin(self) -> None:
        self._check_file()
        self._db.execute("BEGIN IMMEDIATE")
        self._now = self._clock.now()
        self._db.execute("UPDATE store SET clock = ?", (self._now,))

    def _check_file(self) -> None:
        """What is written to a file that was removed goes with this process: nothing more is accepted."""
        try:
            there = os.path.samestat(os.stat(self._path), self._file)
        except OSError:
            there = False
        if not there:
            text = "the file is gone from its place: put it back, with those beside it"
            raise UnavailableError(f"batch queue {self._path}: {text}")

    def _do(self, one: _Waiting, changed: set[BatchKey]) -> None:
        """Raises sqlite3.Error where the whole transaction is to be given up."""
        tx = Transaction(self._db, self._now, self._limits, self._unreadable)
        self._db.execute("SAVEPOINT one")
        try:
            one.result = one.write(tx)
            tx.flush()
            self._db.execute("RELEASE one")
        except Exception as error:
            if isinstance(error, sqlite3.Error) and (is_unavailable(error) or not self._db.in_transaction):
                raise
            self._db.execute("ROLLBACK TO one")
            self._db.execute("RELEASE one")
            one.result = None
            one.error = translate(error, self._path) if isinstance(error, sqlite3.Error) else error
        else:
            changed |= tx.changed

    def _rollback(self) -> None:
        # One that fails has been rolled back by SQLite itself.
        with contextlib.suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _fail(self, one: _Waiting, error: Exception) -> None:
        if isinstance(error, sqlite3.Error):
            # A commit whose sync failed may be found on disk all the same.
            error = translate(error, self._path, uncertain=code(error) == sqlite3.SQLITE_IOERR)
        one.result, one.error = None, error

    def _tell(self, group: list[_Waiting], changed: set[BatchKey]) -> None:
        # Nobody is left to be told where the loop has ended before the queue was closed.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answer, group, changed)

    def _answer(self, group: list[_Waiting], changed: set[BatchKey]) -> None:
        for one in group:
            if one.answer.done():
                continue
            if one.error is None:
                one.answer.set_result(one.result)
            else:
                one.answer.set_exception(one.error)
        if changed:
            self._changed(changed)
