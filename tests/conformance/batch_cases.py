"""What the conformance suite of the batch queues is made of: its fixtures, and small batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol

import pytest

from chiron.batch.contract import BatchQueue
from chiron.batch.records import (
    BatchCounts,
    BatchKey,
    Claim,
    ItemState,
    Limits,
    NewBatch,
    NewItem,
    Outcome,
    Result,
    Session,
    Swept,
)

KEY: BatchKey = ("acme", "b1")
TTL_S = 30.0
DEADLINE_S = 3_600.0
ATTEMPTS = 3
RETENTION_S = 5_000.0
RECEIVE_S = 1_000.0
LIMITS = Limits(attempts=ATTEMPTS, retention_s=RETENTION_S, receive_s=RECEIVE_S)


class OpenQueue(Protocol):
    """Opens this test's store: an empty one the first time, then the same one as it was left.

    The queue that it returned before is closed by then; the suite closes the last.
    """

    async def __call__(self, limits: Limits = LIMITS) -> BatchQueue: ...


Advance = Callable[[float], Awaitable[None]]
"""Moves the clock of this test's store on, by seconds; besides, it may go on by itself."""


def new_batch(
    batch_id: str = "b1",
    tenant: str = "acme",
    deadline_s: float = DEADLINE_S,
    *,
    expire_late: bool = False,
    items: int = 0,
) -> NewBatch:
    return NewBatch(batch_id, tenant, deadline_s, expire_late=expire_late, items=items)


def item(index: int, model: str = "chat", *, custom_id: str = "", failure: bytes = b"") -> NewItem:
    return NewItem(index, custom_id or f"c{index}", model, 10 + index, 100, b"body %d" % index, failure)


def items(*indexes: int, model: str = "chat") -> list[NewItem]:
    return [item(index, model) for index in indexes]


def done(claim: Claim, state: ItemState = ItemState.SUCCEEDED) -> Outcome:
    return Outcome(claim.lease, state, b"result of %d" % claim.lease.index, 7, 20)


def indexes(claims: Sequence[Claim]) -> list[int]:
    return [claim.lease.index for claim in claims]


async def sealed(
    queue: BatchQueue, new: Sequence[NewItem] | None = None, batch: NewBatch | None = None
) -> BatchKey:
    """A batch of these items that is accepted; of five unless told."""
    made = batch or new_batch()
    kept = items(*range(5)) if new is None else new
    key = (made.tenant, made.batch_id)
    await queue.create(made)
    if kept:
        await queue.append(key, kept)
    await queue.seal(key, len(kept))
    return key


async def session(queue: BatchQueue, owner: str = "router-1") -> Session:
    return await queue.begin_session(owner, TTL_S)


async def claim_one(queue: BatchQueue, holder: Session, key: BatchKey = KEY, model: str = "chat") -> Claim:
    (claim,) = await queue.claim(holder, key, model, 1)
    return claim


async def sweep_all(queue: BatchQueue) -> Swept:
    """Sweeps until nothing is left to do now; the sum of what was done."""
    sums = Swept()
    for _ in range(10_000):
        one = await queue.sweep()
        sums = Swept(
            sums.requeued + one.requeued,
            sums.failed + one.failed,
            sums.expired + one.expired,
            sums.cancelled + one.cancelled,
            sums.forgotten + one.forgotten,
            one.again_s,
        )
        if one.again_s > 0:
            return sums
    raise AssertionError("housekeeping never ends")


async def all_results(queue: BatchQueue, key: BatchKey = KEY) -> Sequence[Result]:
    return await queue.results(key, after=0, limit=1_000_000, most_bytes=1 << 40)


def adds_up(counts: BatchCounts) -> bool:
    return counts.queued + counts.running + counts.ended == counts.received


class BatchCase:
    """Fixtures of the parts of the suite. A subclass gives `open_queue` and `advance`."""

    @pytest.fixture
    async def queue(self, open_queue: OpenQueue) -> AsyncIterator[BatchQueue]:
        made = await open_queue()
        yield made
        await made.close()

    @pytest.fixture
    async def holder(self, queue: BatchQueue) -> Session:
        return await session(queue)
