"""One write: the rows it has locked, what it adds to the counters, and the ends of items it records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from chiron.batch.integrity import result_checksum
from chiron.batch.postgres.rows import BATCH_COLUMNS, ITEM_COLUMNS, BatchRow, ItemRow
from chiron.batch.postgres.schema import DELAYED, ENDED, INVALID, QUEUED, RUNNING
from chiron.batch.records import BatchKey, BatchState, ItemState, Lease, Limits

_LOCK_BATCHES = f"SELECT {BATCH_COLUMNS} FROM batches WHERE no = ANY($1::int8[]) ORDER BY no FOR UPDATE"
_LEASED = f"""SELECT b.tenant, b.batch_id, b.state, {ITEM_COLUMNS} FROM items i
    JOIN batches b ON b.no = i.batch
    JOIN unnest($1::text[], $2::text[], $3::int8[]) AS l(tenant, batch_id, place)
    ON b.tenant = l.tenant AND b.batch_id = l.batch_id AND i.place = l.place
    ORDER BY i.batch, i.place FOR UPDATE OF i"""
_ADD_TO_BATCH = """UPDATE batches SET
    queued = queued + $2, running = running + $3, succeeded = succeeded + $4, failed = failed + $5,
    cancelled_items = cancelled_items + $6, expired = expired + $7, late = late + $8,
    prompt_tokens = prompt_tokens + $9, completion_tokens = completion_tokens + $10,
    stored_bytes = stored_bytes + $11, invalid = invalid + $12 WHERE no = $1
    RETURNING state, queued, running"""
# Untouched: whoever makes its files need not wait for anybody.
_END_BATCH = "UPDATE batches SET state = $2, ended = $3, expires = $4, touched = 0 WHERE no = $1"
_ADD_TO_UNIT = """UPDATE units SET
    queued = queued + $2, prompt_tokens = prompt_tokens + $3, max_tokens = max_tokens + $4 WHERE unit = $1"""
_ADD_TO_TENANT = """INSERT INTO tenants AS t VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (tenant) DO UPDATE SET
    open_batches = t.open_batches + excluded.open_batches, queued = t.queued + excluded.queued,
    running = t.running + excluded.running, stored_bytes = t.stored_bytes + excluded.stored_bytes,
    succeeded = t.succeeded + excluded.succeeded, failed = t.failed + excluded.failed,
    completion_tokens = t.completion_tokens + excluded.completion_tokens"""
_INSERT_RESULTS = """INSERT INTO results SELECT * FROM unnest(
    $1::int8[], $2::int8[], $3::int8[], $4::text[], $5::int2[], $6::bytea[],
    $7::float8[], $8::int2[], $9::int4[], $10::int2[], $11::int8[])"""
_END_ITEMS = f"""UPDATE items i SET state = {ENDED}, fence = coalesce(e.fence, nextval('fences')),
    number = e.number, session = NULL, ready = NULL, size = 0, saved = 0
    FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[]) AS e(batch, place, fence, number)
    WHERE i.batch = e.batch AND i.place = e.place"""
_DELETE = """DELETE FROM {} d USING unnest($1::int8[], $2::int8[]) AS e(batch, place)
    WHERE d.batch = e.batch AND d.place = e.place"""
_DELETE_BODIES, _DELETE_CHECKPOINTS = _DELETE.format("bodies"), _DELETE.format("checkpoints")


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
class Delta:
    """What a write adds to the counters of one batch and of its tenant."""

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


class Transaction:
    """One write, in a transaction of its own.

    Attributes:
        db: the connection.
        now: the database's clock, for the whole write.
        limits: of the queue.
        changed: batches that this write changes.
        told: whether other routers are to hear of that as soon as it is committed.
    """

    __slots__ = ("_deltas", "_ends", "_files", "_gone", "_units", "changed", "db", "limits", "now", "told")

    def __init__(self, db: asyncpg.Connection, now: float, limits: Limits) -> None:
        self.db = db
        self.now = now
        self.limits = limits
        self.changed: set[BatchKey] = set()
        self.told = False
        self._deltas: dict[int, Delta] = {}
        self._units: dict[int, list[int]] = {}
        self._ends: list[Ending] = []
        self._gone: list[BatchRow] = []
        self._files: dict[str, int] = {}

    def delta(self, batch: int) -> Delta:
        """What is added to the counters of a batch and its tenant; marks it as changed."""
        found = self._deltas.get(batch)
        if found is None:
            found = self._deltas[batch] = Delta()
        return found

    def waits(self, unit: int | None, items: int, prompt_tokens: int, max_tokens: int) -> None:
        """Adds to what waits of a unit."""
        if unit is None:
            return
        sums = self._units.setdefault(unit, [0, 0, 0])
        sums[0] += items
        sums[1] += prompt_tokens
        sums[2] += max_tokens

    def forgotten(self, row: BatchRow) -> None:
        """A batch, locked, is deleted: its tenant has so much less."""
        self._gone.append(row)
        self.told = True

    def stores(self, tenant: str, size: int) -> None:
        """Adds to the bytes of a tenant's files."""
        self._files[tenant] = self._files.get(tenant, 0) + size

    async def leased(self, leases: Sequence[Lease]) -> dict[Lease, tuple[ItemRow, int]]:
        """The items, locked, of those leases that are under their item's newest fence; with their batch's
        state.
        """
        rows = await self.db.fetch(
            _LEASED,
            [lease.batch[0] for lease in leases],
            [lease.batch[1] for lease in leases],
            [lease.index for lease in leases],
        )
        found = {}
        for tenant, batch_id, state, *columns in rows:
            item = ItemRow(*columns)
            found[Lease((tenant, batch_id), item.place, item.fence)] = (item, state)
        return {lease: found[lease] for lease in leases if lease in found}

    def end(self, endings: Iterable[Ending]) -> None:
        """Records results, in this order, and ends their items, which are locked and have none yet."""
        self._ends.extend(endings)

    async def commit(self) -> None:
        """Writes ends and counters; batches whose last item has ended, end."""
        for ending in self._ends:
            self.delta(ending.item.batch)
        rows = await self.db.fetch(_LOCK_BATCHES, list(self._deltas)) if self._deltas else []
        batches = {row[0]: BatchRow(*row) for row in rows}
        await self._record(batches)
        self.changed |= {row.key for row in batches.values()}
        tenants: dict[str, list[int]] = {}
        for no, row in batches.items():
            one = self._deltas[no]
            await self._add_to_batch(no, one)
            added = (
                one.opened,
                one.queued,
                one.running,
                one.stored_bytes,
                one.succeeded,
                one.failed,
                one.completion_tokens,
            )
            _add(tenants, row.tenant, added)
        for row in self._gone:
            self.changed.add(row.key)
            opened = -(row.state != BatchState.ENDED)
            _add(tenants, row.tenant, (opened, -row.queued, 0, -row.stored_bytes, 0, 0, 0))
        for tenant, size in self._files.items():
            _add(tenants, tenant, (0, 0, 0, size, 0, 0, 0))
        units = [(unit, *sums) for unit, sums in sorted(self._units.items()) if any(sums)]
        if units:
            await self.db.executemany(_ADD_TO_UNIT, units)
        for tenant in sorted(tenants):
            await self.db.execute(_ADD_TO_TENANT, tenant, *tenants[tenant])

    async def _add_to_batch(self, no: int, one: Delta) -> None:
        state, queued, running = await self.db.fetchrow(
            _ADD_TO_BATCH,
            no,
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
        if queued + running == 0 and state in (BatchState.ACTIVE, BatchState.CANCELLING):
            one.opened -= 1
            self.told = True
            expires = self.now + self.limits.retention_s
            await self.db.execute(_END_BATCH, no, int(BatchState.ENDED), self.now, expires)

    async def _record(self, batches: dict[int, BatchRow]) -> None:
        if not self._ends:
            return
        numbers = {
            no: row.succeeded + row.failed + row.cancelled_items + row.expired for no, row in batches.items()
        }
        results: list[tuple[object, ...]] = []
        for ending in self._ends:
            item = ending.item
            delta, batch = self._deltas[item.batch], batches[item.batch]
            self._left(item, delta)
            numbers[item.batch] += 1
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
            head = (numbers[item.batch], item.place, item.custom_id, int(ending.state))
            tail = (self.now, int(late), item.attempts, int(ending.damaged))
            checksum = result_checksum(head, ending.result, tail)
            results.append((item.batch, *head, ending.result, *tail, checksum))
        await self.db.execute(_INSERT_RESULTS, *map(list, zip(*results, strict=True)))
        keys = [one.item.batch for one in self._ends], [one.item.place for one in self._ends]
        fences, ends = [one.fence for one in self._ends], [result[1] for result in results]
        await self.db.execute(_END_ITEMS, *keys, fences, ends)
        await self.db.execute(_DELETE_BODIES, *keys)
        saved = [one.item for one in self._ends if one.item.saved]
        if saved:
            await self.db.execute(
                _DELETE_CHECKPOINTS, [item.batch for item in saved], [item.place for item in saved]
            )

    def _left(self, item: ItemRow, delta: Delta) -> None:
        if item.state == RUNNING:
            delta.running -= 1
            return
        delta.queued -= 1
        if item.state == INVALID:
            delta.invalid -= 1
        elif item.state in (QUEUED, DELAYED):
            self.waits(item.unit, -1, -item.prompt_tokens, -item.max_tokens)


def _add(sums: dict[str, list[int]], key: str, figures: Sequence[int]) -> None:
    own = sums.setdefault(key, [0] * len(figures))
    for place, figure in enumerate(figures):
        own[place] += figure
