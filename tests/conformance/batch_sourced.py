"""Batches whose items are made from a source: gone on with, refused, closed with files of their results."""

from __future__ import annotations

import pytest

from chiron.batch.contract import BatchExistsError, BatchQueue, BatchStateError, UnknownBatchError
from chiron.batch.filing import FileKind, NewView, UnknownFileError
from chiron.batch.records import Batch, BatchKey, BatchState, ItemState, NewBatch, Session
from tests.conformance.batch_cases import (
    DEADLINE_S,
    KEY,
    RECEIVE_S,
    RETENTION_S,
    Advance,
    BatchCase,
    OpenQueue,
    all_results,
    done,
    items,
    new_batch,
    sealed,
    sweep_all,
)
from tests.conformance.batch_files import content, ids, stored, stored_bytes

HOLD_S = 10.0
OUTPUT: tuple[str, str] = ("acme", "file-out")
ERRORS: tuple[str, str] = ("acme", "file-err")
VIEWS = (
    NewView("file-out", FileKind.OUTPUT, "out.jsonl", 300, 1_000.0),
    NewView("file-err", FileKind.ERRORS, "err.jsonl", 20, 2 * RETENTION_S),
)


def sourced(batch_id: str = "b1", tenant: str = "acme") -> NewBatch:
    return NewBatch(batch_id, tenant, DEADLINE_S, source='{"file": "file-1"}')


async def adopted(queue: BatchQueue, hold_s: float = HOLD_S, limit: int = 10) -> list[str]:
    return [batch_id for _, batch_id in await queue.adopt(hold_s, limit)]


async def ended(queue: BatchQueue, holder: Session, key: BatchKey = KEY) -> Batch:
    """A batch of five items, of which two have failed."""
    await sealed(queue, batch=sourced(key[1], key[0]))
    claims = await queue.claim(holder, key, "chat", 10)
    states = [
        ItemState.SUCCEEDED,
        ItemState.FAILED,
        ItemState.SUCCEEDED,
        ItemState.FAILED,
        ItemState.SUCCEEDED,
    ]
    await queue.finish(holder, [done(claim, state) for claim, state in zip(claims, states, strict=True)])
    return await queue.get(key)


class BatchSourcedSuite(BatchCase):
    async def test_a_source_is_kept_and_tells_submissions_apart(self, queue: BatchQueue) -> None:
        made = await queue.create(sourced())
        assert made.source == '{"file": "file-1"}'
        assert made.state is BatchState.RECEIVING
        assert await queue.create(sourced()) == made
        with pytest.raises(BatchExistsError):
            await queue.create(new_batch())
        assert (made.sealed, made.cancelled_at, made.closed, made.refusal) == (None, None, None, "")

    async def test_instants_of_a_batch_are_told(self, queue: BatchQueue, advance: Advance) -> None:
        created = (await queue.create(sourced())).created
        await advance(10.0)
        await queue.append(KEY, items(0))
        sealed_at = (await queue.seal(KEY, 1)).sealed
        assert sealed_at == pytest.approx(created + 10.0, abs=5.0)
        assert sealed_at > created
        await advance(10.0)
        cancelled_at = (await queue.cancel(KEY)).cancelled_at
        assert cancelled_at == pytest.approx(sealed_at + 10.0, abs=5.0)
        assert cancelled_at > sealed_at
        await advance(10.0)
        assert (await queue.cancel(KEY)).cancelled_at == cancelled_at

    async def test_what_nobody_goes_on_with_is_adopted_by_one(
        self, queue: BatchQueue, advance: Advance
    ) -> None:
        await queue.create(sourced("b1"))
        await queue.create(sourced("b2", "other"))
        await queue.create(new_batch("handed-in"))
        assert await adopted(queue) == []
        await advance(HOLD_S + 1.0)
        assert await adopted(queue, limit=1) == ["b1"]
        assert await adopted(queue) == ["b2"]
        assert await adopted(queue) == []
        await advance(HOLD_S - 1.0)
        await queue.append(KEY, items(0))
        await advance(2.0)
        assert await adopted(queue) == ["b2"]

    async def test_what_somebody_holds_is_left_alone(self, queue: BatchQueue, advance: Advance) -> None:
        await queue.create(sourced("b1"))
        await queue.create(sourced("b2"))
        await queue.create(new_batch("handed-in"))
        await advance(0.7 * HOLD_S)
        await queue.hold([KEY, ("acme", "handed-in"), ("acme", "gone")])
        await advance(0.7 * HOLD_S)
        assert await adopted(queue) == ["b2"]
        await advance(0.7 * HOLD_S)
        assert await adopted(queue) == ["b1"]
        await queue.hold([])

    async def test_what_is_accepted_is_left_alone_until_it_has_ended(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        await sealed(queue, items(0), sourced())
        await sealed(queue, items(0), new_batch("handed-in"))
        await advance(HOLD_S + 1.0)
        assert await adopted(queue) == []
        for batch_id in ("b1", "handed-in"):
            (claim,) = await queue.claim(holder, ("acme", batch_id), "chat", 1)
            await queue.finish(holder, [done(claim)])
        # Whoever makes its files need not wait until the hold is over.
        assert await adopted(queue) == ["b1"]
        assert await adopted(queue) == []
        await queue.finalize(KEY, ())
        await advance(HOLD_S + 1.0)
        assert await adopted(queue) == []

    async def test_a_batch_with_a_source_is_not_given_up_while_it_is_received(
        self, queue: BatchQueue, advance: Advance
    ) -> None:
        await queue.create(sourced())
        await queue.create(new_batch("handed-in"))
        await advance(2 * RECEIVE_S)
        assert (await sweep_all(queue)).forgotten == 1
        assert (await queue.get(KEY)).state is BatchState.RECEIVING

    async def test_a_refused_batch_has_ended_without_its_items(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        await queue.create(sourced())
        await queue.append(KEY, items(0, 1, 2))
        batch = await queue.refuse(KEY, "line 7 is wrong")
        assert (batch.state, batch.refusal, batch.counts.received) == (BatchState.ENDED, "line 7 is wrong", 0)
        assert batch.closed == batch.ended
        assert batch.closed is not None
        assert await queue.refuse(KEY, "another word") == batch
        await sweep_all(queue)
        assert list(await queue.units()) == []
        assert await all_results(queue) == []
        assert await queue.claim(holder, KEY, "chat", 10) == []
        (usage,) = await queue.usage("acme")
        assert (usage.open_batches, usage.queued, usage.stored_bytes) == (0, 0, 0)
        with pytest.raises(BatchStateError):
            await queue.append(KEY, items(3))
        with pytest.raises(BatchStateError):
            await queue.seal(KEY, 3)
        assert (await queue.cancel(KEY)).refusal == "line 7 is wrong"
        await advance(HOLD_S + 1.0)
        assert await adopted(queue) == []
        await advance(RETENTION_S)
        await sweep_all(queue)
        with pytest.raises(UnknownBatchError):
            await queue.get(KEY)

    async def test_what_is_accepted_or_handed_in_is_not_refused(self, queue: BatchQueue) -> None:
        with pytest.raises(UnknownBatchError):
            await queue.refuse(KEY, "wrong")
        await sealed(queue, batch=sourced())
        await queue.create(new_batch("handed-in"))
        for batch_id in ("b1", "handed-in"):
            with pytest.raises(BatchStateError):
                await queue.refuse(("acme", batch_id), "wrong")
        assert (await queue.get(KEY)).counts.queued == 5

    async def test_a_refused_batch_may_be_deleted_at_once(self, queue: BatchQueue) -> None:
        await queue.create(sourced())
        await queue.append(KEY, items(0))
        await queue.refuse(KEY, "wrong")
        await queue.delete(KEY)
        await sweep_all(queue)
        with pytest.raises(UnknownBatchError):
            await queue.get(KEY)

    async def test_sourced_batches_are_listed_by_falling_ids(self, queue: BatchQueue) -> None:
        for number in (2, 1, 4, 3):
            await queue.create(sourced(f"b{number}"))
        await queue.create(new_batch("b5"))
        await queue.create(sourced("b9", "other"))
        assert [one.batch_id for one in await queue.sourced("acme", limit=2)] == ["b4", "b3"]
        await queue.discard(("acme", "b3"))
        found = await queue.sourced("acme", limit=10, after="b3")
        assert [one.batch_id for one in found] == ["b2", "b1"]

    async def test_closed_batches_have_files(self, open_queue: OpenQueue) -> None:
        queue = await open_queue()
        batch = await ended(queue, await queue.begin_session("router-1", 30.0))
        assert batch.state is BatchState.ENDED
        assert batch.closed is None
        assert batch.expires is not None
        before = await stored_bytes(queue)
        closed = await queue.finalize(KEY, VIEWS)
        again = await queue.finalize(KEY, (NewView("file-other", FileKind.OUTPUT, "x", 1, 1.0),))
        await queue.close()
        queue = await open_queue()
        assert await queue.get(KEY) == closed == again
        assert (closed.output_file, closed.error_file) == ("file-out", "file-err")
        assert await ids(queue) == ["file-out", "file-err"]
        assert await stored_bytes(queue) == before
        output = await queue.files.get(OUTPUT)
        assert (output.kind, output.name, output.size) == (FileKind.OUTPUT, "out.jsonl", 300)
        assert (output.batch_id, output.chunks) == ("b1", 0)
        assert output.expires == output.created + 1_000.0
        # A file that would outlive its batch goes with it.
        assert (await queue.files.get(ERRORS)).expires == closed.expires
        assert await content(queue, OUTPUT) == b""
        await queue.close()

    async def test_only_what_has_ended_is_closed(self, queue: BatchQueue) -> None:
        with pytest.raises(UnknownBatchError):
            await queue.finalize(KEY, VIEWS)
        await queue.create(sourced())
        with pytest.raises(BatchStateError):
            await queue.finalize(KEY, VIEWS)
        await sealed(queue, [], new_batch("handed-in"))
        with pytest.raises(BatchStateError):
            await queue.finalize(("acme", "handed-in"), VIEWS)
        assert await ids(queue) == []

    async def test_a_deleted_view_takes_its_results_with_it(self, queue: BatchQueue, holder: Session) -> None:
        await ended(queue, holder)
        await queue.finalize(KEY, VIEWS)
        before = await all_results(queue)
        size = await stored_bytes(queue)
        await queue.files.delete(OUTPUT)
        await sweep_all(queue)
        after = await all_results(queue)
        assert [(one.index, one.state, one.removed) for one in after] == [
            (one.index, one.state, one.state is ItemState.SUCCEEDED) for one in before
        ]
        assert [one.result for one in after if not one.removed] == [
            one.result for one in before if one.state is ItemState.FAILED
        ]
        assert not any(one.result or one.damaged for one in after if one.removed)
        assert await stored_bytes(queue) == size - sum(len(b.result) for b in before if b.state == 1)
        await queue.files.delete(ERRORS)
        await sweep_all(queue)
        assert await stored_bytes(queue) == 0
        with pytest.raises(UnknownFileError):
            await queue.files.get(OUTPUT)
        assert (await queue.get(KEY)).output_file == "file-out"

    async def test_a_view_expires_before_its_batch(
        self, queue: BatchQueue, holder: Session, advance: Advance
    ) -> None:
        await ended(queue, holder)
        await queue.finalize(KEY, VIEWS)
        await advance(1_000.0)
        await sweep_all(queue)
        assert await ids(queue) == ["file-err"]
        assert [one.removed for one in await all_results(queue)] == [True, False, True, False, True]

    async def test_views_go_with_their_batch(self, queue: BatchQueue, holder: Session) -> None:
        await ended(queue, holder)
        await queue.finalize(KEY, VIEWS)
        await stored(queue, b"input")
        await queue.files.delete(OUTPUT)
        await queue.delete(KEY)
        await sweep_all(queue)
        assert await ids(queue) == ["file-1"]
        assert await stored_bytes(queue) == 5

    async def test_many_results_go_in_slices(self, queue: BatchQueue, holder: Session) -> None:
        await sealed(queue, items(*range(2_100)), sourced())
        while claims := await queue.claim(holder, KEY, "chat", 1_000):
            await queue.finish(holder, [done(claim) for claim in claims])
        await queue.finalize(KEY, VIEWS[:1])
        await queue.files.delete(OUTPUT)
        rounds = 0
        while (await queue.sweep()).again_s == 0:
            rounds += 1
        assert 3 <= rounds < 10
        assert all(one.removed for one in await all_results(queue))
        assert await stored_bytes(queue) == 0
