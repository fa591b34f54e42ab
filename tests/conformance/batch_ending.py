"""Ending: what the conformance suite asks of results, cancelling, deadlines and retention."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from chiron.batch.contract import BatchQueue, BatchStateError, UnknownBatchError
from chiron.batch.records import BatchState, ItemState, Return, Session
from tests.conformance.batch_cases import (
    DEADLINE_S,
    KEY,
    RECEIVE_S,
    RETENTION_S,
    TTL_S,
    Advance,
    BatchCase,
    OpenQueue,
    adds_up,
    all_results,
    claim_one,
    done,
    item,
    items,
    new_batch,
    sealed,
    session,
    sweep_all,
)


class BatchEndingSuite(BatchCase):
    """Items and batches at their end."""

    # Results

    async def test_a_result_is_recorded_as_it_was_given(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0, 1))
        claims = await queue.claim(holder, key, "chat", 2)
        failed = dataclasses.replace(done(claims[1], ItemState.FAILED), result=bytes(range(256)))
        before = await queue.now()
        assert not await queue.finish(holder, [failed, done(claims[0])])
        first, second = await all_results(queue)
        assert (first.number, first.index, first.custom_id) == (1, 1, "c1")
        assert (first.state, first.result, first.attempts) == (ItemState.FAILED, bytes(range(256)), 1)
        assert (second.number, second.index, second.result) == (2, 0, b"result of 0")
        assert before <= first.recorded <= await queue.now()
        assert not first.late
        batch = await queue.get(key)
        assert batch.state == BatchState.ENDED
        assert batch.ended == pytest.approx(first.recorded)
        assert batch.expires == pytest.approx(first.recorded + RETENTION_S)
        assert (batch.counts.succeeded, batch.counts.failed, batch.counts.late) == (1, 1, 0)
        assert (batch.counts.prompt_tokens, batch.counts.completion_tokens) == (7, 20)
        (usage,) = await queue.usage("acme")
        assert (usage.open_batches, usage.queued, usage.running) == (0, 0, 0)
        assert (usage.succeeded, usage.failed, usage.completion_tokens) == (1, 1, 20)

    async def test_bodies_and_checkpoints_of_ended_items_take_no_room(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue, [dataclasses.replace(item(0), body=bytes(10_000)), item(1)])
        claim = await claim_one(queue, holder, key)
        await queue.checkpoint(holder, [(claim.lease, bytes(5_000))])
        await queue.finish(holder, [done(claim)])
        (usage,) = await queue.usage("acme")
        assert usage.stored_bytes == len(item(1).body) + len(b"result of 0")

    async def test_finishing_again_changes_nothing(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue)
        claim = await claim_one(queue, holder, key)
        other = dataclasses.replace(done(claim), result=b"another")
        assert not await queue.finish(holder, [done(claim), other])
        assert not await queue.finish(holder, [other])
        assert [one.result for one in await all_results(queue)] == [b"result of 0"]
        assert (await queue.get(key)).counts.succeeded == 1

    async def test_only_the_newest_claim_records(self, queue: BatchQueue, advance: Advance) -> None:
        key = await sealed(queue, items(0))
        first, second = await session(queue), await session(queue, "router-2")
        old = await claim_one(queue, first, key)
        await advance(TTL_S - 1.0)
        await queue.renew(second)
        await advance(2.0)
        await sweep_all(queue)
        new = await claim_one(queue, second, key)
        assert await queue.finish(first, [done(old)]) == [old.lease]
        assert not await all_results(queue)
        assert (await queue.get(key)).counts.running == 1
        assert not await queue.finish(second, [done(new)])
        assert await queue.finish(first, [done(old)]) == [old.lease]
        assert len(await all_results(queue)) == 1

    @pytest.mark.parametrize("swept", [False, True])
    async def test_a_session_that_has_lapsed_records_what_nobody_has_claimed_since(
        self, queue: BatchQueue, holder: Session, advance: Advance, swept: bool
    ) -> None:
        key = await sealed(queue, items(0, 1))
        claim = await claim_one(queue, holder, key)
        await advance(TTL_S)
        if swept:
            await sweep_all(queue)
        assert not await queue.finish(holder, [done(claim)])
        batch = await queue.get(key)
        assert (batch.counts.succeeded, batch.counts.queued, batch.counts.running) == (1, 1, 0)
        (unit,) = await queue.units()
        assert (unit.queued, unit.prompt_tokens) == (1, 11)
        await sweep_all(queue)
        assert (await queue.get(key)).counts == batch.counts

    async def test_what_is_put_back_may_still_be_recorded_under_its_fence(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue, items(0))
        claim = await claim_one(queue, holder, key)
        await queue.put_back(holder, [Return(claim.lease, delay_s=100.0)])
        assert not await queue.finish(holder, [done(claim)])
        assert (await queue.get(key)).state == BatchState.ENDED
        assert not await queue.units()

    async def test_one_call_records_what_counts_and_tells_what_does_not(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue)
        claims = await queue.claim(holder, key, "chat", 3)
        wrong = dataclasses.replace(claims[1].lease, fence=claims[1].lease.fence + 1_000)
        nowhere = dataclasses.replace(claims[2].lease, batch=("acme", "none"))
        outcomes = [
            done(claims[0]),
            dataclasses.replace(done(claims[1]), lease=wrong),
            dataclasses.replace(done(claims[2]), lease=nowhere),
            done(claims[2]),
        ]
        assert await queue.finish(holder, outcomes) == [wrong, nowhere]
        assert [one.index for one in await all_results(queue)] == [0, 2]

    async def test_numbers_have_no_gap_and_no_reader_sees_one_before_a_smaller(
        self, queue: BatchQueue
    ) -> None:
        key = await sealed(queue, items(*range(120)))
        holders = [await session(queue, f"router-{number}") for number in range(4)]
        seen: list[int] = []

        async def work(holder: Session) -> None:
            while claims := await queue.claim(holder, key, "chat", 3):
                await asyncio.gather(*(queue.finish(holder, [done(one)]) for one in claims))

        async def read() -> None:
            while len(seen) < 120:
                found = await queue.results(key, after=len(seen), limit=1_000, most_bytes=1 << 30)
                seen.extend(one.number for one in found)

        await asyncio.gather(read(), *(work(holder) for holder in holders))
        assert seen == list(range(1, 121))
        assert sorted(one.index for one in await all_results(queue)) == list(range(120))

    async def test_the_same_result_from_calls_that_overlap_is_recorded_once(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue)
        claims = await queue.claim(holder, key, "chat", 5)
        stale = await asyncio.gather(
            *(queue.finish(holder, [done(one) for one in claims[start:]]) for start in (0, 1, 2, 0, 3))
        )
        assert not any(stale)
        assert sorted(one.index for one in await all_results(queue)) == [0, 1, 2, 3, 4]
        (usage,) = await queue.usage("acme")
        assert (usage.succeeded, usage.completion_tokens) == (5, 100)

    async def test_results_are_read_in_pages(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, items(*range(6)))
        claims = await queue.claim(holder, key, "chat", 6)
        await queue.finish(holder, [dataclasses.replace(done(one), result=bytes(100)) for one in claims])

        async def numbers(after: int, limit: int = 10, most_bytes: int = 10_000) -> list[int]:
            page = await queue.results(key, after=after, limit=limit, most_bytes=most_bytes)
            return [one.number for one in page]

        assert await numbers(0) == [1, 2, 3, 4, 5, 6]
        assert await numbers(2, limit=2) == [3, 4]
        assert await numbers(6) == []
        assert await numbers(1 << 40) == []
        assert await numbers(0, most_bytes=250) == [1, 2]
        assert await numbers(3, most_bytes=1) == [4]
        with pytest.raises(UnknownBatchError):
            await queue.results(("acme", "none"), after=0, limit=1, most_bytes=1)

    async def test_one_result_is_found_by_its_custom_id(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, items(0, 1))
        assert await queue.result(key, "c1") is None
        claims = await queue.claim(holder, key, "chat", 2)
        assert await queue.result(key, "c1") is None
        await queue.finish(holder, [done(claims[1])])
        found = await queue.result(key, "c1")
        assert found == (await all_results(queue))[0]
        assert await queue.result(key, "c0") is None
        assert await queue.result(key, "nothing") is None
        with pytest.raises(UnknownBatchError):
            await queue.result(("acme", "none"), "c1")

    async def test_results_outlive_a_restart(self, open_queue: OpenQueue) -> None:
        queue = await open_queue()
        key = await sealed(queue)
        holder = await session(queue)
        await queue.finish(holder, [done(one) for one in await queue.claim(holder, key, "chat", 3)])
        before = await all_results(queue), await queue.usage()
        await queue.close()
        queue = await open_queue()
        results = await all_results(queue)
        assert results == before[0]
        claims = await queue.claim(await session(queue), key, "chat", 9)
        assert not await queue.finish(holder, [done(one) for one in claims])
        assert [one.number for one in await all_results(queue)] == [1, 2, 3, 4, 5]
        await queue.close()

    # Cancelling

    async def test_what_has_no_result_is_cancelled(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue)
        claims = await queue.claim(holder, key, "chat", 3)
        await queue.finish(holder, [done(claims[0])])
        await queue.put_back(holder, [Return(claims[2].lease, delay_s=1_000.0)])
        cancelled = await queue.cancel(key)
        assert (cancelled.state, cancelled.cancelled) == (BatchState.CANCELLING, True)
        assert not await queue.units()
        assert not await queue.claim(holder, key, "chat", 9)
        assert await queue.finish(holder, [done(claims[1])]) == [claims[1].lease]
        assert await queue.checkpoint(holder, [(claims[1].lease, b"x")]) == [claims[1].lease]
        assert not await queue.finish(holder, [done(claims[0])])
        swept = await sweep_all(queue)
        assert swept.cancelled == 4
        ended = await queue.get(key)
        assert (ended.state, ended.counts.cancelled, ended.counts.succeeded) == (BatchState.ENDED, 4, 1)
        assert await queue.finish(holder, [done(claims[1])]) == [claims[1].lease]
        results = await all_results(queue)
        assert [one.number for one in results] == [1, 2, 3, 4, 5]
        assert {one.index for one in results[1:]} == {1, 2, 3, 4}
        assert {(one.state, one.result) for one in results[1:]} == {(ItemState.CANCELLED, b"")}

    async def test_cancelling_is_idempotent(self, queue: BatchQueue) -> None:
        key = await sealed(queue)
        assert await queue.cancel(key) == await queue.cancel(key)
        await sweep_all(queue)
        ended = await queue.get(key)
        assert await queue.cancel(key) == ended
        with pytest.raises(UnknownBatchError):
            await queue.cancel(("acme", "none"))

    async def test_a_batch_that_has_ended_stays_as_it_is(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, items(0))
        await queue.finish(holder, [done(await claim_one(queue, holder, key))])
        assert not (await queue.cancel(key)).cancelled

    async def test_a_batch_that_is_received_can_be_cancelled(self, queue: BatchQueue) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(0, 3, 1_000_000))
        await queue.cancel(KEY)
        with pytest.raises(BatchStateError, match="CANCELLING"):
            await queue.append(KEY, items(1))
        with pytest.raises(BatchStateError):
            await queue.seal(KEY, 3)
        assert (await sweep_all(queue)).cancelled == 3
        ended = await queue.get(KEY)
        assert (ended.state, ended.counts.cancelled) == (BatchState.ENDED, 3)
        with pytest.raises(BatchStateError):
            await queue.seal(KEY, 3)

    async def test_a_large_batch_is_cancelled_in_rounds(self, queue: BatchQueue) -> None:
        key = await sealed(queue, items(*range(3_000)))
        await queue.cancel(key)
        first = await queue.sweep()
        assert first.again_s == 0
        assert 0 < first.cancelled < 3_000
        counts = (await queue.get(key)).counts
        assert counts.cancelled == first.cancelled
        assert adds_up(counts)
        assert (await sweep_all(queue)).cancelled == 3_000 - first.cancelled
        assert [one.number for one in await all_results(queue)] == list(range(1, 3_001))

    async def test_rounds_of_housekeeping_may_overlap(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        await sealed(queue, items(*range(1_500)), new_batch("cancelled"))
        await sealed(queue, items(*range(1_500)), new_batch("late", expire_late=True))
        held = await sealed(queue, items(*range(1_500)), new_batch("held"))
        await queue.claim(holder, held, "chat", 1_500)
        await queue.cancel(("acme", "cancelled"))
        await advance(DEADLINE_S)
        swept = [one for _ in range(8) for one in await asyncio.gather(*(queue.sweep() for _ in range(4)))]
        assert sum(one.cancelled for one in swept) == 1_500
        assert sum(one.expired for one in swept) == 1_500
        assert sum(one.requeued for one in swept) == 1_500
        for name in ("cancelled", "late"):
            numbers = [one.number for one in await all_results(queue, ("acme", name))]
            assert numbers == list(range(1, 1_501))
        assert (await queue.get(held)).counts.queued == 1_500

    # Deadlines

    async def test_what_waits_past_its_deadline_expires_where_the_batch_says_so(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue, items(*range(4)), new_batch(expire_late=True))
        claims = await queue.claim(holder, key, "chat", 2)
        await queue.put_back(holder, [Return(claims[1].lease, delay_s=2 * DEADLINE_S)])
        assert (await sweep_all(queue)).expired == 0
        await advance(DEADLINE_S + 1.0)
        late = await session(queue, "router-2")
        assert not await queue.claim(late, key, "chat", 9)
        await queue.finish(holder, [dataclasses.replace(done(claims[0]), state=ItemState.EXPIRED)])
        assert (await sweep_all(queue)).expired == 3
        ended = await queue.get(key)
        assert (ended.state, ended.counts.expired, ended.counts.late) == (BatchState.ENDED, 4, 4)
        results = await all_results(queue)
        assert [one.result for one in results] == [b"result of 0", b"", b"", b""]
        assert all(one.late and one.state is ItemState.EXPIRED for one in results)
        assert await queue.finish(holder, [done(claims[1])]) == [claims[1].lease]

    async def test_what_runs_at_the_deadline_stays_with_its_holder(
        self, queue: BatchQueue, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0, 1), new_batch(expire_late=True, deadline_s=TTL_S / 2))
        holder = await session(queue)
        claims = await queue.claim(holder, key, "chat", 2)
        await advance(TTL_S * 2 / 3)
        assert (await sweep_all(queue)).expired == 0
        assert not await queue.finish(holder, [done(claims[0])])
        assert (await queue.get(key)).counts.late == 1
        await advance(TTL_S)
        await sweep_all(queue)
        ended = await queue.get(key)
        assert (ended.state, ended.counts.expired, ended.counts.succeeded) == (BatchState.ENDED, 1, 1)

    async def test_a_batch_that_may_be_late_is_worked_on(self, queue: BatchQueue, advance: Advance) -> None:
        key = await sealed(queue, items(0))
        await advance(DEADLINE_S + 1.0)
        assert (await sweep_all(queue)).expired == 0
        holder = await session(queue)
        await queue.finish(holder, [done(await claim_one(queue, holder, key))])
        ended = await queue.get(key)
        assert (ended.counts.succeeded, ended.counts.late) == (1, 1)

    async def test_a_large_batch_expires_in_rounds(self, queue: BatchQueue, advance: Advance) -> None:
        key = await sealed(queue, items(*range(3_000)), new_batch(expire_late=True))
        await advance(DEADLINE_S)
        first = await queue.sweep()
        assert first.again_s == 0
        assert 0 < first.expired < 3_000
        assert (await sweep_all(queue)).expired == 3_000 - first.expired
        assert (await queue.get(key)).state == BatchState.ENDED

    # Retention

    async def test_a_batch_is_forgotten_after_its_retention(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0))
        await queue.finish(holder, [done(await claim_one(queue, holder, key))])
        await advance(RETENTION_S - 10.0)
        assert (await sweep_all(queue)).forgotten == 0
        assert len(await all_results(queue)) == 1
        await advance(10.0)
        assert (await sweep_all(queue)).forgotten == 1
        with pytest.raises(UnknownBatchError):
            await queue.get(key)
        (usage,) = await queue.usage("acme")
        assert (usage.stored_bytes, usage.open_batches, usage.succeeded) == (0, 0, 1)

    async def test_a_batch_that_is_never_sealed_is_forgotten(
        self, queue: BatchQueue, advance: Advance
    ) -> None:
        await queue.create(new_batch())
        await advance(RECEIVE_S - 10.0)
        await queue.append(KEY, items(0))
        await advance(RECEIVE_S - 10.0)
        assert (await sweep_all(queue)).forgotten == 0
        await advance(10.0)
        assert (await sweep_all(queue)).forgotten == 1
        with pytest.raises(UnknownBatchError):
            await queue.get(KEY)
        (usage,) = await queue.usage("acme")
        assert (usage.queued, usage.open_batches, usage.stored_bytes) == (0, 0, 0)

    async def test_a_batch_is_deleted_once_it_has_ended(self, queue: BatchQueue) -> None:
        key = await sealed(queue, items(*range(2_500)))
        with pytest.raises(BatchStateError, match="ACTIVE"):
            await queue.delete(key)
        await queue.cancel(key)
        await sweep_all(queue)
        await queue.delete(key)
        for gone in (queue.get(key), queue.delete(key), queue.result(key, "c1"), all_results(queue)):
            with pytest.raises(UnknownBatchError):
                await gone
        assert (await queue.usage("acme"))[0].stored_bytes == 0
        await sealed(queue, items(0))
        await sweep_all(queue)
        assert (await queue.get(key)).counts.queued == 1

    async def test_a_round_tells_when_the_next_is_due(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        assert 0 < (await sweep_all(queue)).again_s <= TTL_S
        await advance(TTL_S - 5.0)
        assert 0 < (await queue.sweep()).again_s <= 5.0
