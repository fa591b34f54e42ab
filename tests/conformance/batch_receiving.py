"""Handing in: what the conformance suite asks of create, append, seal and discard."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest

from chiron.batch.contract import (
    BatchExistsError,
    BatchQueue,
    BatchStateError,
    IncompleteError,
    ItemError,
    QueueFullError,
    TenantFullError,
    UnknownBatchError,
)
from chiron.batch.records import BatchState, ItemState, Limits, NewItem, TenantLimits
from tests.conformance.batch_cases import (
    DEADLINE_S,
    KEY,
    LIMITS,
    BatchCase,
    OpenQueue,
    all_results,
    item,
    items,
    new_batch,
    sealed,
    session,
    sweep_all,
)


class BatchReceivingSuite(BatchCase):
    """A batch until it is sealed."""

    async def test_a_batch_is_made_as_it_was_asked_for(self, queue: BatchQueue) -> None:
        before = await queue.now()
        asked = dataclasses.replace(
            new_batch(),
            expire_late=True,
            fail_invalid=True,
            priority=-7,
            metadata={"a": "ä", "b": ""},
            items=3,
        )
        made = await queue.create(asked)
        after = await queue.now()
        assert (made.batch_id, made.tenant, made.state) == ("b1", "acme", BatchState.RECEIVING)
        assert before <= made.created <= after
        assert made.deadline == pytest.approx(made.created + DEADLINE_S)
        assert (made.expire_late, made.fail_invalid, made.priority, made.items) == (True, True, -7, 3)
        assert made.metadata == {"a": "ä", "b": ""}
        assert (made.cancelled, made.ended, made.expires) == (False, None, None)
        assert await queue.get(KEY) == made

    async def test_the_same_submission_finds_its_batch_as_it_stands(self, queue: BatchQueue) -> None:
        made = await queue.create(new_batch())
        await queue.append(KEY, items(0, 1))
        again = await queue.create(new_batch(deadline_s=5.0))
        assert again.deadline == made.deadline
        assert again.counts.received == 2
        await queue.seal(KEY, 2)
        assert (await queue.create(new_batch())).state == BatchState.ACTIVE

    @pytest.mark.parametrize(
        "other",
        [
            {"expire_late": True},
            {"fail_invalid": True},
            {"priority": 1},
            {"metadata": {"a": "b"}},
            {"items": 4},
        ],
    )
    async def test_another_submission_under_an_id_is_refused(
        self, queue: BatchQueue, other: dict[str, object]
    ) -> None:
        await queue.create(new_batch())
        with pytest.raises(BatchExistsError, match="b1"):
            await queue.create(dataclasses.replace(new_batch(), **other))

    async def test_ids_of_tenants_are_apart(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0))
        other = await queue.create(new_batch(tenant="other"))
        assert other.counts.received == 0
        with pytest.raises(UnknownBatchError):
            await queue.get(("third", "b1"))

    async def test_items_are_counted_as_queued(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        assert await queue.append(KEY, items(0, 1, 2)) == 3
        counts = (await queue.get(KEY)).counts
        assert (counts.received, counts.contiguous, counts.queued) == (3, 3, 3)

    async def test_an_empty_append_changes_nothing(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        assert await queue.append(KEY, []) == 0
        assert (await queue.get(KEY)).counts.received == 0

    async def test_nothing_waits_before_the_batch_is_sealed(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0))
        assert not await queue.units()
        assert not await queue.claim(await session(queue), KEY, "chat", 5)
        await queue.seal(KEY, 1)
        assert [unit.queued for unit in await queue.units()] == [1]

    async def test_what_is_kept_without_a_gap_is_told_whatever_the_order(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        order = list(range(200))
        random.Random(5).shuffle(order)
        kept: set[int] = set()
        place = 0
        while place < len(order):
            some = order[place : place + 7]
            place += 7
            kept.update(some)
            await queue.append(KEY, items(*some))
            counts = (await queue.get(KEY)).counts
            first_gap = next(index for index in range(201) if index not in kept)
            assert (counts.received, counts.contiguous) == (len(kept), first_gap)

    async def test_items_that_are_kept_are_passed_over(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0, 1))
        assert await queue.append(KEY, items(0, 1)) == 0
        assert await queue.append(KEY, items(1, 2, 0, 2)) == 1
        counts = (await queue.get(KEY)).counts
        assert (counts.received, counts.contiguous) == (3, 3)
        (usage,) = await queue.usage("acme")
        assert usage.queued == 3
        assert usage.stored_bytes == sum(len(one.body) for one in items(0, 1, 2))

    async def test_items_are_passed_over_once_the_batch_runs_or_has_ended(self, queue: BatchQueue) -> None:
        key = await sealed(queue, items(0, 1))
        assert await queue.append(key, items(0, 1)) == 0
        with pytest.raises(BatchStateError, match="ACTIVE"):
            await queue.append(key, items(1, 2))
        await queue.cancel(key)
        await sweep_all(queue)
        assert (await queue.get(key)).state == BatchState.ENDED
        assert await queue.append(key, items(0, 1)) == 0
        with pytest.raises(ItemError):
            await queue.append(key, [dataclasses.replace(item(0), body=b"other")])

    @pytest.mark.parametrize(
        "other",
        [
            {"custom_id": "other"},
            {"model": "other"},
            {"prompt_tokens": 11},
            {"max_tokens": 101},
            {"body": b"body 1"},
            {"failure": b"failed"},
        ],
    )
    async def test_another_item_under_an_index_is_refused(
        self, queue: BatchQueue, other: dict[str, object]
    ) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0))
        with pytest.raises(ItemError) as caught:
            await queue.append(KEY, [item(1), dataclasses.replace(item(0), **other)])
        assert (caught.value.index, caught.value.field) == (0, "index")
        assert (await queue.get(KEY)).counts.received == 1

    async def test_a_custom_id_that_another_item_has_is_refused(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0))
        with pytest.raises(ItemError) as caught:
            await queue.append(KEY, [item(1), item(2, custom_id="c0")])
        assert (caught.value.index, caught.value.field) == (2, "custom_id")
        with pytest.raises(ItemError) as caught:
            await queue.append(KEY, [item(3, custom_id="x"), item(4, custom_id="x")])
        assert (caught.value.index, caught.value.field) == (4, "custom_id")
        counts = (await queue.get(KEY)).counts
        assert (counts.received, counts.contiguous, counts.queued) == (1, 1, 1)
        await queue.create(new_batch("b2"))
        assert await queue.append(("acme", "b2"), items(0)) == 1

    async def test_what_was_refused_leaves_nothing(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(5))
        with pytest.raises(ItemError):
            await queue.append(KEY, [item(0), item(1, "other"), dataclasses.replace(item(5), body=b"x")])
        await queue.append(KEY, items(0, 1, 2, 3, 4))
        await queue.seal(KEY, 6)
        (unit,) = await queue.units()
        assert (unit.model, unit.queued) == ("chat", 6)

    @pytest.mark.parametrize("index", [-1, 1 << 32])
    async def test_an_index_is_bounded(self, queue: BatchQueue, index: int) -> None:
        await queue.create(new_batch())
        with pytest.raises(ItemError) as caught:
            await queue.append(KEY, [dataclasses.replace(item(0), index=index)])
        assert (caught.value.index, caught.value.field) == (index, "index")

    async def test_a_batch_that_is_unknown_takes_no_items(self, queue: BatchQueue) -> None:
        with pytest.raises(UnknownBatchError, match="b1"):
            await queue.append(KEY, items(0))
        with pytest.raises(UnknownBatchError):
            await queue.seal(KEY, 0)

    # Sealing

    async def test_sealing_again_changes_nothing(self, queue: BatchQueue) -> None:
        key = await sealed(queue)
        once = await queue.get(key)
        assert once.state == BatchState.ACTIVE
        assert await queue.seal(key, 5) == once
        (unit,) = await queue.units()
        assert unit.queued == 5

    @pytest.mark.parametrize(
        ("kept", "told", "header", "named"),
        [
            ((0, 1, 2), 4, 0, "lacks item 3"),
            ((0, 2, 3), 4, 0, "lacks item 1"),
            ((0, 2, 3), 3, 0, "lacks item 1"),
            ((0, 1, 2), 2, 0, "3 items"),
            ((0, 1, 2), 3, 4, "announces 4"),
            ((), 1, 0, "lacks item 0"),
        ],
    )
    async def test_a_batch_that_is_not_whole_is_not_sealed(
        self, queue: BatchQueue, kept: tuple[int, ...], told: int, header: int, named: str
    ) -> None:
        await queue.create(new_batch(items=header))
        await queue.append(KEY, items(*kept))
        with pytest.raises(IncompleteError, match=named):
            await queue.seal(KEY, told)
        assert (await queue.get(KEY)).state == BatchState.RECEIVING
        assert not await queue.units()

    async def test_a_sealed_batch_is_not_sealed_with_another_number(self, queue: BatchQueue) -> None:
        key = await sealed(queue)
        with pytest.raises(IncompleteError):
            await queue.seal(key, 4)

    async def test_a_batch_without_items_ends_at_once(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.seal(KEY, 0)
        await sweep_all(queue)
        ended = await queue.get(KEY)
        assert ended.state == BatchState.ENDED
        assert ended.ended is not None
        assert ended.expires is not None

    async def test_invalid_items_fail_once_the_batch_is_sealed(self, queue: BatchQueue) -> None:
        mixed = [item(0), item(1, "nowhere", failure=b"no such model"), item(2)]
        await queue.create(new_batch())
        await queue.append(KEY, mixed)
        assert await queue.append(KEY, mixed) == 0
        await sweep_all(queue)
        assert not await all_results(queue)
        await queue.seal(KEY, 3)
        await sweep_all(queue)
        (failed,) = await all_results(queue)
        assert (failed.index, failed.state, failed.result) == (1, ItemState.FAILED, b"no such model")
        assert (failed.attempts, failed.damaged) == (0, False)
        assert [(unit.model, unit.queued) for unit in await queue.units()] == [("chat", 2)]
        assert (await queue.get(KEY)).state == BatchState.ACTIVE

    async def test_a_batch_of_invalid_items_alone_ends(self, queue: BatchQueue) -> None:
        key = await sealed(queue, [item(index, failure=b"f%d" % index) for index in range(1_200)])
        await sweep_all(queue)
        ended = await queue.get(key)
        assert (ended.state, ended.counts.failed) == (BatchState.ENDED, 1_200)
        assert [one.result for one in await all_results(queue)] == [b"f%d" % index for index in range(1_200)]

    # Discarding

    async def test_a_discarded_batch_is_forgotten_and_its_id_free(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0, 1, 5))
        await queue.discard(KEY)
        with pytest.raises(UnknownBatchError):
            await queue.get(KEY)
        await queue.discard(KEY)
        (usage,) = await queue.usage("acme")
        assert (usage.open_batches, usage.queued, usage.stored_bytes) == (0, 0, 0)
        await queue.create(new_batch(items=1))
        assert await queue.append(KEY, [dataclasses.replace(item(0), body=b"other")]) == 1
        await sweep_all(queue)
        assert (await queue.get(KEY)).counts.contiguous == 1

    async def test_an_accepted_batch_is_not_discarded(self, queue: BatchQueue) -> None:
        key = await sealed(queue)
        with pytest.raises(BatchStateError, match="ACTIVE"):
            await queue.discard(key)
        assert (await queue.get(key)).counts.queued == 5

    # Limits

    async def test_limits_of_the_queue(self, open_queue: OpenQueue) -> None:
        limits = Limits(items_per_batch=4, queued_items=5, open_batches=2, stored_bytes=100, body_bytes=50)
        queue = await open_queue(limits)
        await queue.create(new_batch())
        await queue.create(new_batch("b2"))
        with pytest.raises(QueueFullError, match="open batches") as caught:
            await queue.create(new_batch("b3"))
        assert not isinstance(caught.value, TenantFullError)
        await queue.create(new_batch())
        await queue.append(KEY, items(0, 1, 2, 3))
        with pytest.raises(QueueFullError, match="in a batch"):
            await queue.append(KEY, items(4))
        with pytest.raises(QueueFullError, match="queued items"):
            await queue.append(("acme", "b2"), items(0, 1))
        await queue.append(("acme", "b2"), items(0))
        await queue.discard(KEY)
        with pytest.raises(QueueFullError, match="51 bytes"):
            await queue.append(("acme", "b2"), [dataclasses.replace(item(1), body=bytes(51))])
        await queue.append(("acme", "b2"), [dataclasses.replace(item(1), body=bytes(50))])
        with pytest.raises(QueueFullError, match="stored bytes"):
            await queue.append(("acme", "b2"), [dataclasses.replace(item(2), body=bytes(50))])
        assert (await queue.get(("acme", "b2"))).counts.received == 2
        await queue.close()

    async def test_limits_of_a_tenant(self, queue: BatchQueue) -> None:
        limits = TenantLimits(queued_items=3, open_batches=1, stored_bytes=20)
        await queue.create(new_batch(), limits)
        with pytest.raises(TenantFullError, match="acme"):
            await queue.create(new_batch("b2"), limits)
        await queue.create(new_batch("b2", "other"), limits)
        await queue.append(KEY, items(0, 1, 2), limits)
        assert await queue.append(KEY, items(0, 1, 2), limits) == 0
        with pytest.raises(TenantFullError, match="queued items"):
            await queue.append(KEY, items(3), limits)
        with pytest.raises(TenantFullError, match="stored bytes"):
            await queue.append(KEY, items(3), dataclasses.replace(limits, queued_items=0))
        await queue.append(("other", "b2"), items(0, 1, 2), limits)

    async def test_what_has_ended_counts_no_more_against_the_limits(self, open_queue: OpenQueue) -> None:
        queue = await open_queue(dataclasses.replace(LIMITS, queued_items=2, open_batches=1))
        key = await sealed(queue, items(0, 1))
        await queue.cancel(key)
        await sweep_all(queue)
        await sealed(queue, items(0, 1), new_batch("b2"))
        await queue.close()

    # Overlapping calls

    async def test_calls_that_overlap_are_apart(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        bad = [item(1_000), item(1_001, custom_id="c1000")]
        answers = await asyncio.gather(
            *(queue.append(KEY, items(*range(at, at + 10))) for at in range(0, 100, 10)),
            queue.append(KEY, bad),
            queue.append(("acme", "none"), items(0)),
            *(queue.append(KEY, items(*range(at, at + 10))) for at in range(0, 100, 10)),
            return_exceptions=True,
        )
        assert sum(one for one in answers if isinstance(one, int)) == 100
        assert [type(one) for one in answers if not isinstance(one, int)] == [ItemError, UnknownBatchError]
        assert (await queue.get(KEY)).counts.contiguous == 100

    async def test_one_of_two_equal_batches_is_made(self, queue: BatchQueue) -> None:
        first, second = await asyncio.gather(queue.create(new_batch()), queue.create(new_batch()))
        assert first == second
        (usage,) = await queue.usage("acme")
        assert usage.open_batches == 1

    # Durability

    async def test_what_was_handed_in_is_there_after_a_restart(self, open_queue: OpenQueue) -> None:
        queue = await open_queue()
        await queue.create(new_batch())
        await queue.append(KEY, items(0, 1, 4))
        before = await queue.get(KEY)
        await queue.close()
        queue = await open_queue()
        assert await queue.get(KEY) == before
        assert await queue.append(KEY, items(0, 1, 2, 3, 4)) == 2
        await queue.seal(KEY, 5)
        await queue.close()
        queue = await open_queue()
        assert (await queue.get(KEY)).state == BatchState.ACTIVE
        (unit,) = await queue.units()
        wanted: list[NewItem] = items(*range(5))
        assert unit.queued == 5
        assert unit.prompt_tokens == sum(one.prompt_tokens for one in wanted)
        assert unit.max_tokens == 500
        await queue.close()
