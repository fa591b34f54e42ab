"""One write: the rows it has read, what it adds to the counters, and the ends of items it records."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.batch.records import BatchKey, BatchState, ItemState, Limits
from chiron.batch.sqlite.content import Unreadable, drop_content
from chiron.batch.sqlite.rows import (
    ITEM_COLUMNS,
    BatchRow,
    ItemRow,
    ResultRow,
    batch_by_key,
    batch_by_no,
    result_row,
    row_id,
)
from chiron.batch.sqlite.schema import DELAYED, ENDED, INVALID, QUEUED, RUNNING

_ADD_TO_BATCH = """UPDATE batches SET
    queued = queued + ?, running = running + ?, succeeded = succeeded + ?, failed = failed + ?,
    cancelled_items = cancelled_items + ?, expired = expired + ?, late = late + ?,
    prompt_tokens = prompt_tokens + ?, completion_tokens = completion_tokens + ?,
    stored_bytes = stored_bytes + ?, invalid = invalid + ? WHERE no = ?
    RETURNING state, queued, running"""
_ADD_TO_TENANT = """INSERT INTO tenants VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant) DO UPDATE SET
    open_batches = open_batches + excluded.open_batches, queued = queued + excluded.queued,
    running = running + excluded.running, stored_bytes = stored_bytes + excluded.stored_bytes,
    succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
    completion_tokens = completion_tokens + excluded.completion_tokens"""
_ADD_TO_STORE = """UPDATE store SET
    open_batches = open_batches + ?, queued = queued + ?, stored_bytes = stored_bytes + ?"""
_ADD_TO_UNIT = """UPDATE units SET
    queued = queued + ?, prompt_tokens = prompt_tokens + ?, max_tokens = max_tokens + ? WHERE unit = ?"""
# Untouched: whoever makes its files need not wait for anybody.
_END_BATCH = "UPDATE batches SET state = ?, ended = ?, expires = ?, touched = 0 WHERE no = ?"
_INSERT_RESULT = "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_END_ITEM = """UPDATE items SET
    state = ?, fence = ?, number = ?, session = NULL, ready = NULL, size = 0, saved = 0 WHERE id = ?"""

SLICE = 1_000
"""Items that a round of housekeeping changes of a kind."""

SLICE_BYTES = 32 << 20
"""Bytes of them: no write holds up the others for long."""


@dataclass(slots=True)
class Ending:
    """How an item ends."""

    item: ItemRow
    state: ItemState
    result: bytes = b""
    fence: int | None = None
    """The fence under which it ended; None: under that of no holder."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    damaged: bool = False


@dataclass(slots=True)
class _Delta:
    key: BatchKey
    results: int
    """Results recorded so far, those of this write included."""
    opened: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    late: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stored_bytes: int = 0
    invalid: int = 0
    forgotten: bool = False


class Transaction:
    """One write, inside a savepoint of the writer's connection.

    Attributes:
        db: the connection.
        now: the store's clock, for the whole write.
        limits: of the queue.
        changed: batches that this write changes.
        unreadable: what the writer has met so far of rows that cannot be read.
    """

    __slots__ = (
        "_deltas",
        "_files",
        "_found",
        "_rows",
        "_units",
        "changed",
        "db",
        "limits",
        "now",
        "unreadable",
    )

    def __init__(self, db: sqlite3.Connection, now: float, limits: Limits, unreadable: Unreadable) -> None:
        self.db = db
        self.now = now
        self.limits = limits
        self.unreadable = unreadable
        self.changed: set[BatchKey] = set()
        self._rows: dict[int, BatchRow] = {}
        self._found: dict[BatchKey, BatchRow] = {}
        self._deltas: dict[int, _Delta] = {}
        self._units: dict[int, list[int]] = {}
        self._files: dict[str, int] = {}

    # Batches. A row is as it was when this write first read it.

    def find(self, key: BatchKey) -> BatchRow | None:
        """A batch by tenant and id."""
        row = self._found.get(key) or batch_by_key(self.db, key)
        if row:
            self._found[key] = self._rows[row.no] = row
        return row

    def batch(self, no: int) -> BatchRow:
        """The batch of an item."""
        row = self._rows.get(no)
        if row is None:
            row = batch_by_no(self.db, no)
            if row is None:
                raise sqlite3.DatabaseError(f"batch {no} has items but no row: the file is malformed")
            self._rows[no] = row
        return row

    def delta(self, row: BatchRow) -> _Delta:
        """What is added to the counters of a batch and its tenant; marks it as changed."""
        delta = self._deltas.get(row.no)
        if delta is None:
            delta = self._deltas[row.no] = _Delta(row.key, row.results)
            self.changed.add(row.key)
        return delta

    def waits(self, unit: int, items: int, prompt_tokens: int, max_tokens: int) -> None:
        """Adds to what waits of a unit."""
        sums = self._units.setdefault(unit, [0, 0, 0])
        sums[0] += items
        sums[1] += prompt_tokens
        sums[2] += max_tokens

    def stores(self, tenant: str, size: int) -> None:
        """Adds to the bytes of a tenant's files."""
        self._files[tenant] = self._files.get(tenant, 0) + size

    def fences(self, count: int) -> range:
        """The next `count` fences, each greater than all before."""
        (last,) = self.db.execute("UPDATE store SET fence = fence + ? RETURNING fence", (count,)).fetchone()
        return range(last - count + 1, last + 1)

    # Items.

    def item(self, key: int) -> ItemRow | None:
        """An item's row."""
        row = self.db.execute(f"SELECT {ITEM_COLUMNS} FROM items WHERE id = ?", (key,)).fetchone()
        return ItemRow(*row) if row else None

    def end(self, endings: Sequence[Ending]) -> None:
        """Records results, in this order, and ends their items; each must have none yet."""
        if not endings:
            return
        unheld = self.fences(1)[0] if any(ending.fence is None for ending in endings) else 0
        results: list[ResultRow] = []
        ended: list[tuple[int, int, int, int]] = []
        for ending in endings:
            item = ending.item
            batch = self.batch(item.batch)
            delta = self.delta(batch)
            self._left(item, delta)
            delta.results += 1
            late = self.now > batch.deadline
            delta.late += late
            delta.stored_bytes += len(ending.result) - item.size - item.saved
            if ending.state is ItemState.SUCCEEDED:
                delta.succeeded += 1
                delta.prompt_tokens += ending.prompt_tokens
                delta.completion_tokens += ending.completion_tokens
            elif ending.state is ItemState.FAILED:
                delta.failed += 1
            elif ending.state is ItemState.CANCELLED:
                delta.cancelled += 1
            else:
                delta.expired += 1
            results.append(
                result_row(
                    row_id(batch.no, delta.results),
                    item.place,
                    item.custom_id,
                    int(ending.state),
                    ending.result,
                    self.now,
                    late,
                    item.attempts,
                    ending.damaged,
                )
            )
            fence = unheld if ending.fence is None else ending.fence
            ended.append((ENDED, fence, delta.results, item.id))
        self.db.executemany(_INSERT_RESULT, results)
        self.db.executemany(_END_ITEM, ended)
        drop_content(self.db, [ending.item for ending in endings], self.unreadable)

    def _left(self, item: ItemRow, delta: _Delta) -> None:
        if item.state == RUNNING:
            delta.running -= 1
            return
        delta.queued -= 1
        if item.state == INVALID:
            delta.invalid -= 1
        elif item.state in (QUEUED, DELAYED):
            self.waits(item.unit, -1, -item.prompt_tokens, -item.max_tokens)

    # The counters.

    def flush(self) -> None:
        """Writes what was added to the counters, and ends batches whose last item has ended.

        Rows that were read before are forgotten.
        """
        db = self.db
        tenants: dict[str, list[int]] = {}
        for no, one in self._deltas.items():
            if not one.forgotten:
                self._flush_batch(no, one)
            sums = tenants.setdefault(one.key[0], [0] * 7)
            for place, added in enumerate(
                (
                    one.opened,
                    one.queued,
                    one.running,
                    one.stored_bytes,
                    one.succeeded,
                    one.failed,
                    one.completion_tokens,
                )
            ):
                sums[place] += added
        for tenant, size in self._files.items():
            tenants.setdefault(tenant, [0] * 7)[3] += size
        for tenant, sums in tenants.items():
            db.execute(_ADD_TO_TENANT, (tenant, *sums))
            db.execute(_ADD_TO_STORE, (sums[0], sums[1], sums[3]))
        for unit, waiting in self._units.items():
            db.execute(_ADD_TO_UNIT, (*waiting, unit))
        self._rows.clear()
        self._found.clear()
        self._deltas.clear()
        self._units.clear()
        self._files.clear()

    def _flush_batch(self, no: int, one: _Delta) -> None:
        added = (
            one.queued,
            one.running,
            one.succeeded,
            one.failed,
            one.cancelled,
            one.expired,
            one.late,
            one.prompt_tokens,
            one.completion_tokens,
            one.stored_bytes,
            one.invalid,
        )
        state, queued, running = self.db.execute(_ADD_TO_BATCH, (*added, no)).fetchone()
        if queued + running == 0 and state in (BatchState.ACTIVE, BatchState.CANCELLING):
            one.opened -= 1
            expires = self.now + self.limits.retention_s
            self.db.execute(_END_BATCH, (int(BatchState.ENDED), self.now, expires, no))
