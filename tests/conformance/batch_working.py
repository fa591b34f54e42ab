"""Working: what the conformance suite asks of sessions, claims, checkpoints and returns."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from chiron.batch.contract import BatchQueue, SessionLostError
from chiron.batch.records import Claim, ItemState, Limits, Return, Session
from tests.conformance.batch_cases import (
    ATTEMPTS,
    KEY,
    LIMITS,
    TTL_S,
    Advance,
    BatchCase,
    OpenQueue,
    adds_up,
    all_results,
    claim_one,
    done,
    indexes,
    item,
    items,
    new_batch,
    sealed,
    session,
    sweep_all,
)


class BatchWorkingSuite(BatchCase):
    """Items from the claim until they are back or ended."""

    # Claims

    async def test_a_claim_has_all_of_the_item(self, queue: BatchQueue, holder: Session) -> None:
        batch = dataclasses.replace(new_batch(), expire_late=True)
        key = await sealed(queue, items(0, 1), batch)
        kept = await queue.get(key)
        await queue.claim(holder, key, "chat", 1)
        (claim,) = await queue.claim(holder, key, "chat", 1)
        wanted = items(1)[0]
        assert (claim.lease.batch, claim.lease.index) == (key, 1)
        assert claim == Claim(
            claim.lease,
            wanted.custom_id,
            "chat",
            kept.deadline,
            True,
            wanted.prompt_tokens,
            wanted.max_tokens,
            1,
            wanted.body,
            b"",
        )

    async def test_items_are_claimed_in_their_order(self, queue: BatchQueue, holder: Session) -> None:
        await queue.create(new_batch())
        await queue.append(KEY, items(5, 1, 3))
        await queue.append(KEY, items(4, 0, 2))
        await queue.seal(KEY, 6)
        assert indexes(await queue.claim(holder, KEY, "chat", 4)) == [0, 1, 2, 3]
        assert indexes(await queue.claim(holder, KEY, "chat", 4)) == [4, 5]
        assert not await queue.claim(holder, KEY, "chat", 4)

    async def test_models_are_apart(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, [item(0), item(1, "other"), item(2)])
        assert indexes(await queue.claim(holder, key, "other", 9)) == [1]
        assert indexes(await queue.claim(holder, key, "chat", 9)) == [0, 2]
        assert not await queue.claim(holder, key, "third", 9)
        assert not await queue.claim(holder, ("acme", "none"), "chat", 9)

    @pytest.mark.parametrize("limit", [0, -1])
    async def test_a_claim_of_nothing_is_empty(self, queue: BatchQueue, holder: Session, limit: int) -> None:
        key = await sealed(queue)
        assert not await queue.claim(holder, key, "chat", limit)

    async def test_units_and_counts_follow_claims(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue)
        claims = await queue.claim(holder, key, "chat", 2)
        (unit,) = await queue.units()
        batch = await queue.get(key)
        assert (unit.batch, unit.model, unit.deadline) == (key, "chat", batch.deadline)
        assert (unit.queued, unit.prompt_tokens, unit.max_tokens) == (3, 12 + 13 + 14, 300)
        assert (batch.counts.queued, batch.counts.running) == (3, 2)
        (usage,) = await queue.usage()
        assert (usage.queued, usage.running, usage.open_batches) == (3, 2, 1)
        await queue.put_back(holder, [Return(claims[0].lease)])
        (unit,) = await queue.units()
        assert (unit.queued, unit.prompt_tokens, unit.max_tokens) == (4, 10 + 12 + 13 + 14, 400)

    async def test_callers_never_get_the_same_item(self, queue: BatchQueue) -> None:
        key = await sealed(queue, items(*range(100)))
        holders = [await session(queue, f"router-{number}") for number in range(4)]
        taken = await asyncio.gather(*(queue.claim(holders[turn % 4], key, "chat", 7) for turn in range(20)))
        got = [claim.lease for claims in taken for claim in claims]
        assert sorted(lease.index for lease in got) == list(range(100))

    async def test_every_claim_of_an_item_has_a_greater_fence(
        self, queue: BatchQueue, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0))
        fences = []
        for _ in range(ATTEMPTS):
            claim = await claim_one(queue, await session(queue), key)
            fences.append(claim.lease.fence)
            await advance(TTL_S)
            await sweep_all(queue)
        assert fences == sorted(set(fences))

    async def test_a_fence_is_greater_also_where_the_batch_was_made_anew(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue, items(0))
        first = await claim_one(queue, holder, key)
        await queue.finish(holder, [done(first)])
        await queue.delete(key)
        await sealed(queue, items(0))
        second = await claim_one(queue, holder, key)
        assert second.lease.fence > first.lease.fence
        assert await queue.finish(holder, [done(first)]) == [first.lease]
        assert not await all_results(queue)

    # Returns

    async def test_what_is_put_back_keeps_its_place_and_its_checkpoint(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue)
        claims = await queue.claim(holder, key, "chat", 3)
        await queue.checkpoint(holder, [(claims[1].lease, b"so far")])
        returns = [Return(claims[1].lease), Return(claims[0].lease, checkpoint=b"half")]
        assert not await queue.put_back(holder, returns)
        again = await queue.claim(holder, key, "chat", 3)
        assert [(one.lease.index, one.checkpoint, one.attempt) for one in again] == [
            (0, b"half", 2),
            (1, b"so far", 2),
            (3, b"", 1),
        ]

    async def test_a_return_that_does_not_count_leaves_the_attempts(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue, items(0))
        for _ in range(ATTEMPTS + 2):
            claim = await claim_one(queue, holder, key)
            assert claim.attempt == 1
            await queue.put_back(holder, [Return(claim.lease, counts=False)])

    async def test_an_item_without_an_attempt_left_fails(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, items(0))
        for attempt in range(1, ATTEMPTS + 1):
            claim = await claim_one(queue, holder, key)
            assert claim.attempt == attempt
            assert not await queue.put_back(holder, [Return(claim.lease, failure=b"why %d" % attempt)])
        assert not await queue.claim(holder, key, "chat", 1)
        (failed,) = await all_results(queue)
        assert (failed.state, failed.result) == (ItemState.FAILED, b"why %d" % ATTEMPTS)
        assert (failed.attempts, failed.damaged) == (ATTEMPTS, False)

    async def test_attempts_without_a_limit(self, open_queue: OpenQueue) -> None:
        queue = await open_queue(Limits(attempts=0))
        holder = await session(queue)
        key = await sealed(queue, items(0))
        for attempt in range(1, 20):
            claim = await claim_one(queue, holder, key)
            assert claim.attempt == attempt
            await queue.put_back(holder, [Return(claim.lease)])
        await queue.close()

    async def test_what_is_put_back_with_a_delay_waits(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0, 1))
        claims = await queue.claim(holder, key, "chat", 2)
        await queue.put_back(holder, [Return(claims[0].lease, 10.0), Return(claims[1].lease, 20.0)])
        (unit,) = await queue.units()
        assert unit.queued == 2
        assert not await queue.claim(holder, key, "chat", 2)
        await advance(10.5)
        assert indexes(await queue.claim(holder, key, "chat", 2)) == [0]
        await advance(10.5)
        assert indexes(await queue.claim(holder, key, "chat", 2)) == [1]

    async def test_putting_back_twice_happens_once(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, items(0))
        claim = await claim_one(queue, holder, key)
        returned = Return(claim.lease)
        await queue.put_back(holder, [returned, returned])
        await queue.put_back(holder, [returned])
        counts = (await queue.get(key)).counts
        assert (counts.queued, counts.running) == (1, 0)
        assert (await claim_one(queue, holder, key)).attempt == 2

    async def test_a_stale_lease_puts_nothing_back(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0, 1))
        old = await claim_one(queue, holder, key)
        await queue.put_back(holder, [Return(old.lease)])
        new = await claim_one(queue, holder, key)
        assert await queue.put_back(holder, [Return(old.lease)]) == [old.lease]
        assert await queue.checkpoint(holder, [(old.lease, b"x")]) == [old.lease]
        assert not await queue.checkpoint(holder, [(new.lease, b"y")])
        assert (await queue.get(key)).counts.running == 1

    # Checkpoints

    async def test_the_newest_checkpoint_is_kept(self, queue: BatchQueue, holder: Session) -> None:
        key = await sealed(queue, items(0))
        claim = await claim_one(queue, holder, key)
        (before,) = await queue.usage("acme")
        for state in (b"one", b"twice", b"x"):
            assert not await queue.checkpoint(holder, [(claim.lease, state)])
        (after,) = await queue.usage("acme")
        assert after.stored_bytes == before.stored_bytes + 1
        await queue.put_back(holder, [Return(claim.lease)])
        assert (await claim_one(queue, holder, key)).checkpoint == b"x"

    async def test_a_checkpoint_outlives_session_and_restart(
        self, open_queue: OpenQueue, advance: Advance
    ) -> None:
        queue = await open_queue()
        key = await sealed(queue, items(0))
        holder = await session(queue)
        claim = await claim_one(queue, holder, key)
        await queue.checkpoint(holder, [(claim.lease, b"so far")])
        await queue.close()
        queue = await open_queue()
        await advance(TTL_S)
        await sweep_all(queue)
        again = await claim_one(queue, await session(queue), key)
        assert (again.checkpoint, again.attempt) == (b"so far", 2)
        assert again.lease.fence > claim.lease.fence
        await queue.close()

    # Sessions

    async def test_session_ids_rise(self, open_queue: OpenQueue) -> None:
        queue = await open_queue()
        first = await session(queue)
        await queue.end_session(first)
        second = await session(queue, "router-2")
        assert (second.owner, second.ttl_s) == ("router-2", TTL_S)
        assert second.session_id > first.session_id
        await queue.end_session(second)
        await queue.close()
        queue = await open_queue()
        assert (await session(queue)).session_id > second.session_id
        await queue.close()

    async def test_a_session_that_is_renewed_lives(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0))
        await queue.claim(holder, key, "chat", 1)
        for _ in range(3):
            await advance(TTL_S - 5.0)
            await queue.renew(holder)
        assert (await sweep_all(queue)).requeued == 0
        assert (await queue.get(key)).counts.running == 1

    async def test_a_session_that_lapses_loses_what_it_held(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        key = await sealed(queue)
        claims = await queue.claim(holder, key, "chat", 3)
        await advance(TTL_S)
        for refused in (
            queue.renew(holder),
            queue.claim(holder, key, "chat", 1),
            queue.checkpoint(holder, [(claims[0].lease, b"x")]),
            queue.put_back(holder, [Return(claims[0].lease)]),
        ):
            with pytest.raises(SessionLostError):
                await refused
        swept = await sweep_all(queue)
        assert (swept.requeued, swept.failed) == (3, 0)
        again = await queue.claim(await session(queue), key, "chat", 9)
        assert [one.attempt for one in again] == [2, 2, 2, 1, 1]

    async def test_items_of_sessions_that_lapse_fail_after_their_attempts(
        self, queue: BatchQueue, advance: Advance
    ) -> None:
        key = await sealed(queue, items(0))
        for attempt in range(1, ATTEMPTS + 1):
            await claim_one(queue, await session(queue), key)
            await advance(TTL_S)
            swept = await sweep_all(queue)
            last = attempt == ATTEMPTS
            assert (swept.requeued, swept.failed) == (int(not last), int(last))
        (failed,) = await all_results(queue)
        assert (failed.state, failed.result, failed.attempts) == (ItemState.FAILED, b"", ATTEMPTS)

    async def test_a_session_that_ends_puts_back_without_counting(
        self, queue: BatchQueue, holder: Session
    ) -> None:
        key = await sealed(queue)
        await queue.claim(holder, key, "chat", 3)
        other = await session(queue, "router-2")
        await queue.claim(other, key, "chat", 1)
        await queue.end_session(holder)
        await queue.end_session(holder)
        with pytest.raises(SessionLostError):
            await queue.claim(holder, key, "chat", 1)
        with pytest.raises(SessionLostError):
            await queue.renew(holder)
        again = await queue.claim(other, key, "chat", 9)
        assert [(one.lease.index, one.attempt) for one in again] == [(0, 1), (1, 1), (2, 1), (4, 1)]
        assert adds_up((await queue.get(key)).counts)

    async def test_a_large_session_goes_back_in_rounds(self, open_queue: OpenQueue, advance: Advance) -> None:
        queue = await open_queue(LIMITS)
        key = await sealed(queue, items(*range(3_000)))
        holder = await session(queue)
        assert len(await queue.claim(holder, key, "chat", 3_000)) == 3_000
        await advance(TTL_S)
        first = await queue.sweep()
        assert first.again_s == 0
        assert 0 < first.requeued < 3_000
        assert (await sweep_all(queue)).requeued == 3_000 - first.requeued
        assert (await queue.units())[0].queued == 3_000
        await queue.close()
