"""Cluster state in this process's memory: the embedded default, for one controller."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from chiron.store.contract import CompactedError, ConflictError, FencedError, Store, Transaction
from chiron.store.decisions import DecisionRecord
from chiron.store.records import Change, Key, Snapshot


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class MemoryStore(Store):
    """Holds one immutable snapshot; used from one event loop.

    Terms come from the wall clock in milliseconds, so that a controller started again has a higher one
    although nothing of the earlier one was kept.
    """

    def __init__(
        self,
        *,
        decisions_kept: int = 1000,
        history_kept: int = 1000,
        clock_ms: Callable[[], int] = _wall_clock_ms,
    ) -> None:
        """Makes an empty store.

        Args:
            decisions_kept: how many decisions the log holds.
            history_kept: how many changes a watch may lie behind.
            clock_ms: wall clock in milliseconds, for the terms.
        """
        self._snapshot = Snapshot()
        self._term = 0
        self._clock_ms = clock_ms
        self._history: deque[Change] = deque(maxlen=history_kept)
        self._decisions: deque[DecisionRecord] = deque(maxlen=decisions_kept)
        self._changed = asyncio.Event()
        self._closed = False

    async def acquire_term(self) -> int:
        """See Store."""
        self._term = max(self._term + 1, self._clock_ms())
        return self._term

    async def read(self) -> Snapshot:
        """See Store."""
        return self._snapshot

    async def commit(self, transaction: Transaction) -> int:
        """See Store."""
        if transaction.term != self._term:
            raise FencedError(f"term {transaction.term} has ended; the newest is {self._term}")
        present = self._snapshot.revisions
        wrong = [key for key, revision in transaction.expect.items() if present.get(key, 0) != revision]
        if wrong:
            raise ConflictError(wrong)
        written: list[Key] = [*(record.key for record in transaction.puts), *transaction.deletes]
        if len(set(written)) != len(written):
            raise ValueError("a transaction writes a key twice")
        deletes = tuple(key for key in transaction.deletes if key in present)
        self._decisions.extend(transaction.decisions)
        if transaction.outcomes:
            for index, one in enumerate(self._decisions):
                if one.decision_id in transaction.outcomes:
                    outcome = transaction.outcomes[one.decision_id]
                    self._decisions[index] = dataclasses.replace(one, outcome=outcome)
        if transaction.puts or deletes:
            change = Change(self._snapshot.revision + 1, tuple(transaction.puts), deletes)
            self._snapshot = self._snapshot.after(change)
            self._history.append(change)
            self._wake()
        return self._snapshot.revision

    async def watch(self, after: int) -> AsyncIterator[Change]:
        """See Store."""
        if after > self._snapshot.revision:
            raise ValueError(f"revision {after} lies ahead; the present one is {self._snapshot.revision}")
        while not self._closed:
            if after == self._snapshot.revision:
                await self._changed.wait()
                continue
            first_kept = self._snapshot.revision - len(self._history) + 1
            if after + 1 < first_kept:
                raise CompactedError(f"changes from revision {after + 1} are gone; kept from {first_kept}")
            change = self._history[after + 1 - first_kept]
            yield change
            after = change.revision

    async def decisions(self, *, limit: int, model: str = "") -> Sequence[DecisionRecord]:
        """See Store."""
        newest = (one for one in reversed(self._decisions) if not model or one.model == model)
        return [one for one, _ in zip(newest, range(limit), strict=False)]

    async def close(self) -> None:
        """See Store."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        waiting, self._changed = self._changed, asyncio.Event()
        waiting.set()
