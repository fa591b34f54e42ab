"""Batches for tests of what works on the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from chiron.batch import wire
from chiron.batch.contract import BatchQueue
from chiron.batch.records import Batch, BatchKey, BatchState, NewBatch, NewItem
from chiron.v1 import batch_pb2, inference_pb2
from tests.support.wait import eventually


def item(index: int, *, model: str = "m", prompt: str = "", **sampling: Any) -> NewItem:
    """An item; each has a prompt of its own."""
    chosen = {"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, **sampling}
    request = inference_pb2.GenerateRequest(
        model=model,
        prompt=prompt or f"Tell me about the sea, part {index}.",
        sampling=inference_pb2.SamplingParams(**chosen),
    )
    return NewItem(index, str(index), model, 8, chosen["max_tokens"], wire.body_of(request))


async def hand_in(
    queue: BatchQueue,
    items: Sequence[NewItem],
    *,
    batch_id: str = "b",
    tenant: str = "acme",
    deadline_s: float = 600.0,
    **header: Any,
) -> BatchKey:
    """Makes a batch, hands its items in and seals it."""
    key = (tenant, batch_id)
    await queue.create(NewBatch(batch_id, tenant, deadline_s, **header))
    await queue.append(key, items)
    await queue.seal(key, len(items))
    return key


async def ended(queue: BatchQueue, key: BatchKey, *, within_s: float = 30.0) -> Batch:
    """The batch, once every item has its result."""

    async def look() -> Batch | None:
        batch = await queue.get(key)
        return batch if batch.state is BatchState.ENDED else None

    found = await eventually(look, within_s=within_s, what=f"batch {key} ends")
    assert found is not None
    return found


async def results(queue: BatchQueue, key: BatchKey) -> dict[int, batch_pb2.ItemResult]:
    """Index → its one result."""
    found: list[batch_pb2.ItemResult] = []
    while some := await queue.results(key, after=len(found), limit=500, most_bytes=1 << 20):
        found += map(wire.item_result, some)
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    counts = Counter(one.index for one in found)
    assert not [index for index, times in counts.items() if times > 1], "an item has two results"
    return {one.index: one for one in found}
