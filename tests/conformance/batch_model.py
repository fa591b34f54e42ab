"""A model of a batch queue, and random walks over queue and model alike.

The model keeps one record an item and derives every count from it. What a queue may choose (fences, numbers,
the order among its housekeeping) it takes over from the queue's answers, after checking that they may be so.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field

from chiron.batch.contract import BatchQueue, SessionLostError
from chiron.batch.records import (
    Batch,
    BatchKey,
    BatchState,
    Claim,
    ItemState,
    Lease,
    Limits,
    NewBatch,
    NewItem,
    Outcome,
    Return,
    Session,
)
from tests.conformance.batch_cases import ATTEMPTS, TTL_S, Advance, OpenQueue, item, sweep_all

MODELS = ("chat", "small")
DEADLINE_S = 200.0
RESULTS_EVERY = 10
"""Steps after which results are read; counts are after each."""

WAITS, RUNS, INVALID = "waits", "runs", "invalid"


@dataclass
class ModelItem:
    new: NewItem
    state: str | ItemState
    ready: float = 0.0
    fence: int = 0
    attempts: int = 0
    session: int = 0
    checkpoint: bytes = b""
    result: bytes = b""


@dataclass
class ModelBatch:
    new: NewBatch
    deadline: float
    state: BatchState = BatchState.RECEIVING
    items: dict[int, ModelItem] = field(default_factory=dict)
    read: list[tuple[int, int, ItemState, bytes]] = field(default_factory=list)
    """Results as they were first read; none may change or move."""

    def ended(self) -> bool:
        return all(isinstance(one.state, ItemState) for one in self.items.values())


class Walk:
    """One queue, its model, and steps that take both along."""

    def __init__(self, open_queue: OpenQueue, advance: Advance, rng: random.Random, name: str) -> None:
        """`name` tells its tenants from those of other walks over the same store."""
        self.tenants = (f"acme-{name}", f"other-{name}")
        self.open_queue = open_queue
        self.advance_clock = advance
        self.rng = rng
        self.batches: dict[BatchKey, ModelBatch] = {}
        self.sessions: dict[int, tuple[Session, float]] = {}
        self.claims: list[tuple[Session, Claim]] = []
        self.made = 0
        self.highest_fence = 0
        self.counted: Counter[tuple[str, str]] = Counter()

    async def open(self) -> None:
        self.queue: BatchQueue = await self.open_queue(Limits(attempts=ATTEMPTS))

    def some(self, *states: BatchState) -> ModelBatch | None:
        found = [one for one in self.batches.values() if one.state in states]
        return self.rng.choice(found) if found else None

    @staticmethod
    def key(batch: ModelBatch) -> BatchKey:
        return batch.new.tenant, batch.new.batch_id

    async def alive(self, session: Session) -> bool:
        entry = self.sessions.get(session.session_id)
        return entry is not None and entry[1] > await self.queue.now()

    # Steps

    async def create(self) -> None:
        if sum(one.state != BatchState.ENDED for one in self.batches.values()) > 5:
            return
        self.made += 1
        tenant = self.rng.choice(self.tenants)
        late = self.rng.random() < 0.5
        new = NewBatch(f"b{self.made}", tenant, DEADLINE_S, expire_late=late)
        batch = await self.queue.create(new)
        self.batches[tenant, new.batch_id] = ModelBatch(new, batch.deadline)

    async def append(self) -> None:
        batch = self.some(BatchState.RECEIVING)
        if batch is None:
            return await self.create()
        count = self.rng.randint(1, 8)
        indexes = self.rng.sample(range(len(batch.items) + count), count)
        new = []
        for index in indexes:
            failure = b"bad %d" % index if self.rng.random() < 0.1 else b""
            made = item(index, self.rng.choice(MODELS), failure=failure)
            new.append(batch.items[index].new if index in batch.items else made)
        fresh = {one.index: one for one in new if one.index not in batch.items}
        assert await self.queue.append(self.key(batch), new) == len(fresh)
        for index, one in fresh.items():
            batch.items[index] = ModelItem(one, INVALID if one.failure else WAITS)
        return None

    async def seal(self) -> None:
        batch = self.some(BatchState.RECEIVING)
        if batch is None or (len(batch.items) < 8 and self.rng.random() < 0.9):
            return await self.append()
        missing = sorted(set(range(max(batch.items, default=-1) + 1)) - batch.items.keys())
        if missing:
            new = [item(index) for index in missing]
            assert await self.queue.append(self.key(batch), new) == len(new)
            batch.items.update({one.index: ModelItem(one, WAITS) for one in new})
        await self.queue.seal(self.key(batch), len(batch.items))
        batch.state = BatchState.ACTIVE
        await self.sweep()
        return None

    async def begin(self) -> None:
        session = await self.queue.begin_session(f"router-{len(self.sessions)}", TTL_S)
        assert session.session_id > max(self.sessions, default=0)
        self.sessions[session.session_id] = (session, await self.queue.now() + TTL_S)

    async def renew(self) -> None:
        session = await self.a_session()
        if session is None:
            return
        if await self.alive(session):
            await self.queue.renew(session)
            self.sessions[session.session_id] = (session, await self.queue.now() + TTL_S)
        else:
            await self.must_be_lost(self.queue.renew(session))

    async def a_session(self) -> Session | None:
        """Mostly one that is alive."""
        known = [one for one, _ in self.sessions.values()]
        alive = [one for one in known if await self.alive(one)]
        if alive and self.rng.random() < 0.85:
            known = alive
        return self.rng.choice(known) if known else None

    async def must_be_lost(self, call: Awaitable[object]) -> None:
        try:
            await call
        except SessionLostError:
            return
        raise AssertionError("a session that has lapsed was let through")

    async def end_session(self) -> None:
        session = await self.a_session()
        if session is None:
            return
        await self.queue.end_session(session)
        self.sessions[session.session_id] = (session, 0.0)
        for one in self.every_item():
            if one.state == RUNS and one.session == session.session_id:
                one.state, one.ready = WAITS, 0.0
                one.attempts -= 1

    def every_item(self) -> list[ModelItem]:
        return [one for batch in self.batches.values() for one in batch.items.values()]

    async def claim(self) -> None:
        session = await self.a_session()
        batch = self.some(BatchState.ACTIVE, BatchState.ENDED, BatchState.RECEIVING)
        if session is None or batch is None:
            return None
        model, limit = self.rng.choice(MODELS), self.rng.randint(1, 6)
        call = self.queue.claim(session, self.key(batch), model, limit)
        if not await self.alive(session):
            return await self.must_be_lost(call)
        now = await self.queue.now()
        claims = await call
        open_to = batch.state == BatchState.ACTIVE
        if batch.new.expire_late and now >= batch.deadline:
            open_to = False
        open_items = sorted(
            index
            for index, one in batch.items.items()
            if open_to and one.state == WAITS and one.new.model == model and one.ready <= now
        )
        assert [one.lease.index for one in claims] == open_items[:limit]
        for claim in claims:
            kept = batch.items[claim.lease.index]
            assert claim.lease.fence > self.highest_fence
            self.highest_fence = claim.lease.fence
            assert claim.attempt == kept.attempts + 1
            assert (claim.body, claim.checkpoint) == (kept.new.body, kept.checkpoint)
            kept.state, kept.session, kept.fence = RUNS, session.session_id, claim.lease.fence
            kept.attempts += 1
            self.claims.append((session, claim))
        return None

    def held(self, lease: Lease) -> tuple[ModelBatch, ModelItem] | None:
        """The item of a lease that has not been overtaken; None: the lease counts no more."""
        batch = self.batches.get(lease.batch)
        if batch is None or lease.index not in batch.items:
            return None
        one = batch.items[lease.index]
        if one.fence != lease.fence:
            return None
        if batch.state == BatchState.CANCELLING and not isinstance(one.state, ItemState):
            return None
        return batch, one

    def some_claims(self) -> list[tuple[Session, Claim]]:
        recent = self.claims[-25:]
        return self.rng.sample(recent, min(len(recent), self.rng.randint(1, 5)))

    async def finish(self) -> None:
        chosen = self.some_claims()
        if not chosen:
            return
        outcomes = []
        stale = []
        for _, claim in chosen:
            state = self.rng.choice((ItemState.SUCCEEDED, ItemState.SUCCEEDED, ItemState.FAILED))
            outcome = Outcome(claim.lease, state, b"r%d" % self.rng.randrange(10**6), 3, 5)
            outcomes.append(outcome)
            found = self.held(claim.lease)
            if found is None:
                stale.append(claim.lease)
            elif not isinstance(found[1].state, ItemState):
                found[1].state, found[1].result = outcome.state, outcome.result
                self.end_batch(found[0])
        assert list(await self.queue.finish(chosen[0][0], outcomes)) == stale

    async def put_back(self) -> None:
        chosen = self.some_claims()
        if not chosen:
            return None
        session = chosen[0][0]
        returns = [
            Return(
                claim.lease,
                delay_s=self.rng.choice((0.0, 0.0, 15.0)),
                checkpoint=self.rng.choice((None, b"half")),
                counts=self.rng.random() < 0.6,
                failure=b"no more",
            )
            for _, claim in chosen
        ]
        call = self.queue.put_back(session, returns)
        if not await self.alive(session):
            return await self.must_be_lost(call)
        now = await self.queue.now()
        stale = []
        for one in returns:
            found = self.held(one.lease)
            if found is None:
                stale.append(one.lease)
                continue
            batch, kept = found
            if kept.state != RUNS:
                continue
            if one.counts and kept.attempts >= ATTEMPTS:
                kept.state, kept.result = ItemState.FAILED, one.failure
                self.end_batch(batch)
                continue
            kept.state, kept.ready = WAITS, now + one.delay_s if one.delay_s else 0.0
            kept.attempts -= not one.counts
            kept.checkpoint = kept.checkpoint if one.checkpoint is None else one.checkpoint
        assert list(await call) == stale
        return None

    async def checkpoint(self) -> None:
        chosen = self.some_claims()
        if not chosen:
            return None
        session = chosen[0][0]
        states = [(claim.lease, b"at %d" % self.rng.randrange(1000)) for _, claim in chosen]
        call = self.queue.checkpoint(session, states)
        if not await self.alive(session):
            return await self.must_be_lost(call)
        stale = []
        for lease, state in states:
            found = self.held(lease)
            if found is None or found[1].state != RUNS:
                stale.append(lease)
            else:
                found[1].checkpoint = state
        assert list(await call) == stale
        return None

    async def cancel(self) -> None:
        batch = self.some(BatchState.RECEIVING, BatchState.ACTIVE)
        if batch is None or self.rng.random() < 0.7:
            return
        await self.queue.cancel(self.key(batch))
        batch.state = BatchState.CANCELLING
        if not batch.items or batch.ended():
            batch.state = BatchState.ENDED

    async def forget(self) -> None:
        batch = self.some(BatchState.RECEIVING, BatchState.ENDED)
        if batch is None or self.rng.random() < 0.8:
            return
        key = self.key(batch)
        await (self.queue.delete if batch.state == BatchState.ENDED else self.queue.discard)(key)
        self.note_ends(batch)
        del self.batches[key]

    def note_ends(self, batch: ModelBatch) -> None:
        for one in batch.items.values():
            if isinstance(one.state, ItemState):
                self.counted[batch.new.tenant, one.state.name] += 1

    async def advance(self) -> None:
        await self.advance_clock(self.rng.choice((1.0, 1.0, 2.0, 5.0, 5.0, TTL_S / 2, TTL_S, 3 * TTL_S)))

    def end_batch(self, batch: ModelBatch) -> None:
        if batch.state in (BatchState.ACTIVE, BatchState.CANCELLING) and batch.ended():
            batch.state = BatchState.ENDED

    async def sweep(self) -> None:
        """Housekeeping to its end."""
        now = await self.queue.now()
        await sweep_all(self.queue)
        lapsed = {number for number, (_, until) in self.sessions.items() if until <= now}
        for batch in self.batches.values():
            for one in batch.items.values():
                self.swept_item(batch, one, lapsed, now)
            self.end_batch(batch)

    def swept_item(self, batch: ModelBatch, one: ModelItem, lapsed: set[int], now: float) -> None:
        if isinstance(one.state, ItemState):
            return
        if batch.state == BatchState.CANCELLING:
            one.state, one.fence = ItemState.CANCELLED, -1
            return
        if one.state == RUNS and one.session in lapsed:
            if one.attempts >= ATTEMPTS:
                one.state = ItemState.FAILED
                one.fence = -1
                return
            one.state, one.ready = WAITS, 0.0
        if batch.state == BatchState.ACTIVE and one.state == INVALID:
            one.state, one.result = ItemState.FAILED, one.new.failure
            return
        expires = batch.state == BatchState.ACTIVE and batch.new.expire_late and now >= batch.deadline
        if expires and one.state == WAITS:
            one.state, one.fence = ItemState.EXPIRED, -1

    async def restart(self) -> None:
        """What the sessions held is with nobody afterwards: a store may end them as it is opened."""
        if self.rng.random() < 0.5:
            return
        await self.queue.close()
        await self.open()
        await self.advance_clock(TTL_S)
        self.sessions = {number: (one, 0.0) for number, (one, _) in self.sessions.items()}
        await self.sweep()

    # What must hold after every step

    async def check(self, *, results: bool) -> None:
        seen: dict[BatchKey, Batch] = {}
        for tenant in self.tenants:
            page, _ = await self.queue.page(tenant, limit=1_000)
            seen |= {(tenant, one.batch_id): one for one in page}
        assert seen.keys() == self.batches.keys()
        for key, batch in self.batches.items():
            self.check_counts(seen[key], batch)
            if results:
                await self.check_results(key, batch)
        await self.check_units()
        await self.check_usage()

    def check_counts(self, kept: Batch, batch: ModelBatch) -> None:
        states = Counter(one.state for one in batch.items.values())
        assert kept.state == batch.state
        counts = kept.counts
        assert (counts.received, counts.running) == (len(batch.items), states[RUNS])
        assert counts.queued == states[WAITS] + states[INVALID]
        assert (counts.succeeded, counts.failed) == (states[ItemState.SUCCEEDED], states[ItemState.FAILED])
        assert (counts.cancelled, counts.expired) == (states[ItemState.CANCELLED], states[ItemState.EXPIRED])
        assert counts.completion_tokens == 5 * counts.succeeded
        gap = next(index for index in range(len(batch.items) + 1) if index not in batch.items)
        assert counts.contiguous == gap

    async def check_results(self, key: BatchKey, batch: ModelBatch) -> None:
        results = await self.queue.results(key, after=0, limit=10_000, most_bytes=1 << 30)
        counts = (await self.queue.get(key)).counts
        assert [one.number for one in results] == list(range(1, counts.ended + 1))
        assert counts.late == sum(one.late for one in results)
        seen = [(one.number, one.index, one.state, one.result) for one in results]
        assert seen[: len(batch.read)] == batch.read
        batch.read = seen
        wanted = {
            (index, one.state, one.result)
            for index, one in batch.items.items()
            if isinstance(one.state, ItemState)
        }
        assert {(index, state, result) for _, index, state, result in seen} == wanted

    async def check_units(self) -> None:
        wanted: Counter[tuple[BatchKey, str]] = Counter()
        prompts: Counter[tuple[BatchKey, str]] = Counter()
        for key, batch in self.batches.items():
            for one in batch.items.values():
                if batch.state == BatchState.ACTIVE and one.state == WAITS:
                    wanted[key, one.new.model] += 1
                    prompts[key, one.new.model] += one.new.prompt_tokens
        units = [one for one in await self.queue.units() if one.batch[0] in self.tenants]
        assert {(one.batch, one.model): one.queued for one in units} == wanted
        assert {(one.batch, one.model): one.prompt_tokens for one in units} == prompts
        assert all(one.max_tokens == 100 * one.queued for one in units)

    async def check_usage(self) -> None:
        for usage in await self.queue.usage():
            if usage.tenant not in self.tenants:
                continue
            own = [one for one in self.batches.values() if one.new.tenant == usage.tenant]
            items = [one for batch in own for one in batch.items.values()]
            states = Counter(one.state for one in items)
            assert usage.open_batches == sum(one.state != BatchState.ENDED for one in own)
            assert (usage.queued, usage.running) == (states[WAITS] + states[INVALID], states[RUNS])
            succeeded = self.counted[usage.tenant, "SUCCEEDED"] + states[ItemState.SUCCEEDED]
            assert usage.succeeded == succeeded
            assert usage.failed == self.counted[usage.tenant, "FAILED"] + states[ItemState.FAILED]
            assert usage.completion_tokens == 5 * succeeded
            stored = 0
            for one in items:
                if isinstance(one.state, ItemState):
                    stored += len(one.result)
                else:
                    stored += len(one.new.body) + len(one.new.failure) + len(one.checkpoint)
            assert usage.stored_bytes == stored


STEPS = {
    "create": 1,
    "append": 8,
    "seal": 4,
    "begin": 3,
    "renew": 4,
    "end_session": 1,
    "claim": 14,
    "finish": 8,
    "put_back": 8,
    "checkpoint": 4,
    "cancel": 1,
    "forget": 1,
    "advance": 5,
    "sweep": 4,
    "restart": 1,
}


async def walk(open_queue: OpenQueue, advance: Advance, name: str, steps: Sequence[str], seed: int) -> None:
    """Takes these steps, with details of this seed; fails where queue and model part."""
    one = Walk(open_queue, advance, random.Random(seed), name)
    await one.open()
    try:
        for number, step in enumerate(steps):
            try:
                await getattr(one, step)()
                await one.check(results=number % RESULTS_EVERY == 0 or number == len(steps) - 1)
            except AssertionError as error:
                raise AssertionError(f"step {number} ({step}): {error}") from error
    finally:
        await one.queue.close()
