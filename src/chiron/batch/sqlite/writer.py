"""The one thread that writes: it commits together what has come in the meantime."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from chiron.batch.contract import UnavailableError
from chiron.batch.records import BatchKey, Limits
from chiron.batch.sqlite.clock import QueueClock
from chiron.batch.sqlite.failures import is_unavailable, translate
from chiron.batch.sqlite.transaction import Transaction

T = TypeVar("T")
Write = Callable[[Transaction], Any]

GROUP_WRITES = 512
GROUP_S = 0.05
"""A group is committed once it has taken so long, whatever else waits."""

_Waiting = tuple[Write, "asyncio.Future[Any]"]
_Answer = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Writer:
    """Takes writes from an event loop; answers each once it is on disk.

    Writes of a group are apart: each has a savepoint, and where the disk takes no group it is asked to take
    each alone.
    """

    def __init__(
        self,
        connect: Callable[[], sqlite3.Connection],
        path: str,
        clock: QueueClock,
        limits: Limits,
        changed: Callable[[set[BatchKey]], None],
    ) -> None:
        """`changed` is called on the event loop. The thread runs from now on."""
        self._db = connect()
        self._path = path
        self._clock = clock
        self._limits = limits
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batch-queue-writer", daemon=True)
        self._thread.start()

    async def write(self, write: Callable[[Transaction], T]) -> T:
        """Returns what `write` does once that is on disk.

        Raises its errors, UnavailableError, RefusedError.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        with self._wake:
            if self._closed:
                raise UnavailableError(f"batch queue {self._path} is closed")
            self._waiting.append((write, answer))
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
        self._db.close()

    def _commit_group(self) -> None:
        group: list[_Waiting] = []
        answers: list[_Answer] = []
        changed: set[BatchKey] = set()
        try:
            self._begin()
            until = time.monotonic() + GROUP_S
            while self._waiting and len(group) < GROUP_WRITES and time.monotonic() < until:
                group.append(self._waiting.popleft())
                answers.append(self._one(*group[-1], changed))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            if not group:
                group.append(self._waiting.popleft())
            if len(group) == 1:
                answers = [(group[0][1], None, self._failed(error))]
                changed = set()
            else:
                answers, changed = self._one_by_one(group)
        self._loop.call_soon_threadsafe(self._answer, answers, changed)

    def _one_by_one(self, group: list[_Waiting]) -> tuple[list[_Answer], set[BatchKey]]:
        answers: list[_Answer] = []
        changed: set[BatchKey] = set()
        for waiting in group:
            mine: set[BatchKey] = set()
            try:
                self._begin()
                answer = self._one(*waiting, mine)
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                self._rollback()
                answers.append((waiting[1], None, self._failed(error)))
            else:
                answers.append(answer)
                changed |= mine
        return answers, changed

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._now = self._clock.now()
        self._db.execute("UPDATE store SET clock = ?", (self._now,))

    def _one(self, write: Write, answer: asyncio.Future[Any], changed: set[BatchKey]) -> _Answer:
        """Raises sqlite3.Error where the whole transaction is to be given up."""
        tx = Transaction(self._db, self._now, self._limits)
        self._db.execute("SAVEPOINT one")
        try:
            result = write(tx)
            tx.flush()
            self._db.execute("RELEASE one")
        except Exception as error:
            if isinstance(error, sqlite3.Error) and (is_unavailable(error) or not self._db.in_transaction):
                raise
            self._db.execute("ROLLBACK TO one")
            self._db.execute("RELEASE one")
            told = translate(error, self._path) if isinstance(error, sqlite3.Error) else error
            return answer, None, told
        changed |= tx.changed
        return answer, result, None

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _failed(self, error: sqlite3.Error) -> BaseException:
        # A commit whose sync failed may be found on disk all the same.
        uncertain = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
        return translate(error, self._path, uncertain=uncertain)

    def _answer(self, answers: list[_Answer], changed: set[BatchKey]) -> None:
        for answer, result, error in answers:
            if answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)
        if changed:
            self._changed(changed)
