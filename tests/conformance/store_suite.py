"""What every store of cluster state must do. A subclass gives the fixture `make_store`."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from chiron.policy.decisions import Alternative
from chiron.store import (
    ApiKeyRecord,
    Change,
    CompactedError,
    ConflictError,
    DecisionRecord,
    FencedError,
    GpuRecord,
    InstanceRecord,
    Kind,
    ModelRecord,
    Need,
    NodeRecord,
    Observed,
    Outcome,
    Store,
    TenantRecord,
    TicketKeysRecord,
    Transaction,
)
from chiron.v1 import cluster_pb2, types_pb2

DECISIONS_KEPT = 5
HISTORY_KEPT = 8

MakeStore = Callable[[], Awaitable[Store]]
"""Makes an empty store that keeps DECISIONS_KEPT decisions and at least HISTORY_KEPT changes."""

TENANT = TenantRecord("acme", b"spec")
API_KEY = ApiKeyRecord("k1", b"digest", tenant="acme")
KEYS = TicketKeysRecord(b"", rotated_unix_ms=5)
MODEL = ModelRecord("chat", b"spec", spec_version=1, rollout_version=1, desired_instances=2)
NODE = NodeRecord("a", "10.0.0.1", (GpuRecord(0, "GPU-1", "A100", 80 << 30),), agent_version="0.1.0")
INSTANCE = InstanceRecord(
    instance_id="chat-1",
    model="chat",
    node_id="a",
    gpu_indexes=(0,),
    role=types_pb2.ROLE_MIXED,
    spec=b"spec",
    spec_version=1,
    observed=Observed(types_pb2.INSTANCE_STATE_READY, "", 7, "10.0.0.1:50100", 1),
    batch_size=8,
    step_token_budget=512,
)
MODEL_KEY, NODE_KEY, INSTANCE_KEY = MODEL.key, NODE.key, INSTANCE.key


def decision(number: int, model: str = "chat") -> DecisionRecord:
    return DecisionRecord(
        f"d{number}", 1_700_000_000_000, 1, "place", model, "", "", "because", {"n": number}
    )


STARTED = cluster_pb2.OUTCOME_KIND_STARTED
EXPLAINED = DecisionRecord(
    "e",
    1_700_000_000_000,
    1,
    "place",
    "chat",
    "chat-1",
    "a",
    "because",
    {"n": 1.5},
    inputs=cluster_pb2.DecisionInputs(free_gpus=3, theta=0.85).SerializeToString(deterministic=True),
    alternatives=(Alternative("wake one", "none sleeps", {"asleep": 0.0}),),
    cause="d1",
    trace_parent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    generation=4,
    outcome=Outcome(STARTED, reason="waits for its node"),
)


class StoreSuite:
    """The contract of chiron.store.contract.Store."""

    @pytest.fixture
    async def store(self, make_store: MakeStore) -> AsyncIterator[Store]:
        made = await make_store()
        yield made
        await made.close()

    @pytest.fixture
    async def term(self, store: Store) -> int:
        return await store.acquire_term()

    # Reading and writing

    async def test_a_new_store_is_empty(self, store: Store) -> None:
        snapshot = await store.read()
        assert not snapshot.models
        assert not snapshot.nodes
        assert not snapshot.instances
        assert not snapshot.revisions

    async def test_every_kind_of_record_comes_back_as_it_was_put(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL, NODE, INSTANCE, KEYS, TENANT, API_KEY)))
        snapshot = await store.read()
        assert snapshot.tenants == {"acme": TENANT}
        assert snapshot.api_keys == {"k1": API_KEY}
        assert snapshot.ticket_keys == KEYS
        assert snapshot.models == {"chat": MODEL}
        assert snapshot.nodes == {"a": NODE}
        assert snapshot.instances == {"chat-1": INSTANCE}

    async def test_a_put_replaces_and_a_delete_removes(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL, NODE)))
        changed = dataclasses.replace(MODEL, desired_instances=9)
        await store.commit(Transaction(term, puts=(changed,), deletes=(NODE_KEY,)))
        snapshot = await store.read()
        assert snapshot.models == {"chat": changed}
        assert not snapshot.nodes
        assert NODE_KEY not in snapshot.revisions

    async def test_records_of_different_kinds_with_one_name_are_apart(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL, dataclasses.replace(NODE, node_id="chat"))))
        await store.commit(Transaction(term, deletes=((Kind.NODE, "chat"),)))
        assert (await store.read()).models == {"chat": MODEL}

    # Revisions

    async def test_each_transaction_raises_the_revision_by_one(self, store: Store, term: int) -> None:
        before = (await store.read()).revision
        first = await store.commit(Transaction(term, puts=(MODEL, NODE)))
        second = await store.commit(Transaction(term, puts=(MODEL,)))
        snapshot = await store.read()
        assert (first, second) == (before + 1, before + 2)
        assert snapshot.revision == second
        assert snapshot.revisions == {MODEL_KEY: second, NODE_KEY: first}

    async def test_what_changes_nothing_leaves_the_revision_alone(self, store: Store, term: int) -> None:
        before = (await store.read()).revision
        only_log = Transaction(term, deletes=(NODE_KEY,), decisions=(decision(1),))
        assert await store.commit(only_log) == before
        assert [one.decision_id for one in await store.decisions(limit=9)] == ["d1"]

    # Compare and set

    async def test_a_write_at_the_expected_revision_succeeds(self, store: Store, term: int) -> None:
        first = await store.commit(Transaction(term, puts=(MODEL,), expect={MODEL_KEY: 0}))
        await store.commit(Transaction(term, puts=(MODEL,), expect={MODEL_KEY: first}))
        assert (await store.read()).revisions[MODEL_KEY] == first + 1

    async def test_a_write_at_another_revision_conflicts_and_names_the_record(
        self, store: Store, term: int
    ) -> None:
        first = await store.commit(Transaction(term, puts=(MODEL,)))
        await store.commit(Transaction(term, puts=(MODEL,)))
        with pytest.raises(ConflictError) as caught:
            await store.commit(Transaction(term, puts=(MODEL,), expect={MODEL_KEY: first}))
        assert caught.value.keys == (MODEL_KEY,)

    async def test_creating_what_exists_conflicts(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL,)))
        with pytest.raises(ConflictError):
            await store.commit(Transaction(term, puts=(MODEL,), expect={MODEL_KEY: 0}))

    async def test_a_record_made_again_does_not_have_its_old_revision(self, store: Store, term: int) -> None:
        first = await store.commit(Transaction(term, puts=(MODEL,)))
        await store.commit(Transaction(term, deletes=(MODEL_KEY,)))
        await store.commit(Transaction(term, puts=(MODEL,)))
        with pytest.raises(ConflictError):
            await store.commit(Transaction(term, puts=(MODEL,), expect={MODEL_KEY: first}))

    async def test_a_record_can_be_expected_without_being_written(self, store: Store, term: int) -> None:
        first = await store.commit(Transaction(term, puts=(MODEL,)))
        await store.commit(Transaction(term, puts=(NODE,), expect={MODEL_KEY: first}))
        with pytest.raises(ConflictError):
            await store.commit(Transaction(term, puts=(NODE,), expect={MODEL_KEY: first + 1}))

    async def test_a_conflict_stores_nothing_of_the_transaction(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL,)))
        before = await store.read()
        with pytest.raises(ConflictError):
            await store.commit(
                Transaction(term, puts=(NODE,), expect={MODEL_KEY: 0}, decisions=(decision(1),))
            )
        assert await store.read() == before
        assert await store.decisions(limit=9) == []

    async def test_of_rivals_for_one_record_exactly_one_wins(self, store: Store, term: int) -> None:
        async def take(number: int) -> bool:
            record = dataclasses.replace(MODEL, desired_instances=number)
            try:
                await store.commit(Transaction(term, puts=(record,), expect={MODEL_KEY: 0}))
            except ConflictError:
                return False
            return True

        won = await asyncio.gather(*(take(number) for number in range(8)))
        assert won.count(True) == 1
        assert (await store.read()).models["chat"].desired_instances == won.index(True)

    async def test_writing_a_key_twice_is_refused(self, store: Store, term: int) -> None:
        with pytest.raises(ValueError, match="twice"):
            await store.commit(Transaction(term, puts=(MODEL,), deletes=(MODEL_KEY,)))
        assert not (await store.read()).models

    # Terms

    async def test_each_term_is_greater_than_those_before(self, store: Store) -> None:
        terms = [await store.acquire_term() for _ in range(3)]
        assert terms == sorted(set(terms))
        assert terms[0] > 0

    async def test_an_older_term_can_write_no_more(self, store: Store, term: int) -> None:
        newer = await store.acquire_term()
        with pytest.raises(FencedError):
            await store.commit(Transaction(term, puts=(MODEL,), decisions=(decision(1),)))
        assert not (await store.read()).models
        assert await store.decisions(limit=9) == []
        await store.commit(Transaction(newer, puts=(MODEL,)))

    async def test_fencing_is_told_before_a_conflict(self, store: Store, term: int) -> None:
        await store.acquire_term()
        with pytest.raises(FencedError):
            await store.commit(Transaction(term, puts=(MODEL,), expect={MODEL_KEY: 99}))

    async def test_without_a_term_nobody_writes(self, store: Store) -> None:
        with pytest.raises(FencedError):
            await store.commit(Transaction(1, puts=(MODEL,)))

    # Watching

    async def test_a_watch_yields_what_happened_since_and_what_happens_then(
        self, store: Store, term: int
    ) -> None:
        base = await store.commit(Transaction(term, puts=(MODEL,)))
        second = await store.commit(Transaction(term, puts=(NODE, INSTANCE)))
        watch = aiter(store.watch(base))
        assert await anext(watch) == Change(second, puts=(NODE, INSTANCE))
        coming = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        assert not coming.done()
        third = await store.commit(Transaction(term, deletes=(NODE_KEY, (Kind.NODE, "none"))))
        assert await coming == Change(third, deletes=(NODE_KEY,))

    async def test_watches_from_any_revision_lead_to_the_present_state(self, store: Store, term: int) -> None:
        states = [await store.read()]
        for number in range(HISTORY_KEPT - 1):
            record = dataclasses.replace(MODEL, name=f"m{number % 3}", desired_instances=number)
            deletes = ((Kind.MODEL, f"m{(number + 1) % 3}"),) if number % 2 else ()
            await store.commit(Transaction(term, puts=(record,), deletes=deletes))
            states.append(await store.read())
        for start in states[:-1]:
            state = start
            async for change in store.watch(start.revision):
                assert change.revision == state.revision + 1
                state = state.after(change)
                if state.revision == states[-1].revision:
                    break
            assert state == states[-1]

    async def test_a_watch_that_owes_a_lost_change_fails(self, store: Store, term: int) -> None:
        base = await store.commit(Transaction(term, puts=(MODEL,)))
        watch = aiter(store.watch(base))
        first = await store.commit(Transaction(term, puts=(NODE,)))
        assert (await anext(watch)).revision == first
        await self.compact(store, term)
        with pytest.raises(CompactedError):
            await anext(watch)
        with pytest.raises(CompactedError):
            await anext(aiter(store.watch(base)))

    async def test_the_future_cannot_be_watched(self, store: Store) -> None:
        with pytest.raises(ValueError, match="ahead"):
            await anext(aiter(store.watch((await store.read()).revision + 1)))

    async def test_closing_ends_a_watch(self, store: Store) -> None:
        watch = aiter(store.watch((await store.read()).revision))
        waiting = asyncio.ensure_future(anext(watch, None))
        await asyncio.sleep(0)
        await store.close()
        assert await waiting is None

    # Decisions

    async def test_the_newest_decisions_come_first_and_the_log_is_bounded(
        self, store: Store, term: int
    ) -> None:
        for number in range(DECISIONS_KEPT + 2):
            await store.commit(Transaction(term, decisions=(decision(number),)))
        newest = [f"d{number}" for number in reversed(range(2, DECISIONS_KEPT + 2))]
        assert [one.decision_id for one in await store.decisions(limit=100)] == newest
        assert [one.decision_id for one in await store.decisions(limit=2)] == newest[:2]

    async def test_a_decision_comes_back_with_all_that_explains_it(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, decisions=(EXPLAINED,)))
        assert await store.decisions(limit=9) == [EXPLAINED]

    async def test_the_last_outcome_counts(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, decisions=(decision(1), EXPLAINED, decision(2))))
        first = Outcome(STARTED, milestones=(("ready", 2.5),))
        await store.commit(Transaction(term, outcomes={"e": first}))
        assert [one.outcome for one in await store.decisions(limit=9)] == [None, first, None]
        need = Need(needed=True, peak_use=0.9, peak_without=1.2, limit=1.0, window_s=5.0)
        done = Outcome(STARTED, cluster_pb2.OUTCOME_STATE_DONE, milestones=(("ready", 2.5),), need=need)
        await store.commit(Transaction(term, decisions=(decision(3),), outcomes={"e": done, "d1": first}))
        outcomes = {one.decision_id: one.outcome for one in await store.decisions(limit=9)}
        assert outcomes == {"d3": None, "d2": None, "e": done, "d1": first}

    async def test_an_outcome_leaves_the_revision_alone(self, store: Store, term: int) -> None:
        before = await store.commit(Transaction(term, puts=(MODEL,), decisions=(EXPLAINED,)))
        assert (
            await store.commit(Transaction(term, outcomes={"e": Outcome(STARTED, reason="later")})) == before
        )
        assert (await store.decisions(limit=1))[0].outcome == Outcome(STARTED, reason="later")

    async def test_an_older_term_writes_no_outcome(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, decisions=(EXPLAINED,)))
        await store.acquire_term()
        with pytest.raises(FencedError):
            await store.commit(Transaction(term, outcomes={"e": Outcome(STARTED, reason="late")}))
        assert await store.decisions(limit=1) == [EXPLAINED]

    async def test_outcomes_go_with_their_decisions_and_of_none_that_is_gone_is_kept(
        self, store: Store, term: int
    ) -> None:
        await store.commit(Transaction(term, decisions=(EXPLAINED,)))
        await store.commit(
            Transaction(term, outcomes={"e": Outcome(STARTED, reason="a"), "never": Outcome(STARTED)})
        )
        for number in range(DECISIONS_KEPT):
            late = {"e": Outcome(STARTED, reason=str(number))}
            await store.commit(Transaction(term, decisions=(decision(number),), outcomes=late))
        await store.commit(Transaction(term, outcomes={"e": Outcome(STARTED, reason="z")}))
        found = await store.decisions(limit=100)
        assert [one.decision_id for one in found] == [f"d{n}" for n in reversed(range(DECISIONS_KEPT))]
        assert all(one.outcome is None for one in found)

    async def test_decisions_of_one_model(self, store: Store, term: int) -> None:
        log = (decision(1), decision(2, "other"), decision(3))
        await store.commit(Transaction(term, puts=(MODEL,), decisions=log))
        found = await store.decisions(limit=2, model="chat")
        assert found == [decision(3), decision(1)]

    # Isolation

    async def test_a_snapshot_is_unaffected_by_later_writes(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL,)))
        before = await store.read()
        await store.commit(Transaction(term, puts=(NODE,), deletes=(MODEL_KEY,)))
        assert before.models == {"chat": MODEL}
        assert not before.nodes

    async def test_nothing_that_was_returned_can_be_changed(self, store: Store, term: int) -> None:
        await store.commit(Transaction(term, puts=(MODEL,), decisions=(decision(1),)))
        snapshot = await store.read()
        with pytest.raises(TypeError):
            snapshot.models["chat"] = None  # type: ignore[index]
        with pytest.raises(dataclasses.FrozenInstanceError):
            snapshot.models["chat"].desired_instances = 7  # type: ignore[misc]
        log = await store.decisions(limit=9)
        with pytest.raises(TypeError):
            log[0].numbers["n"] = 7  # type: ignore[index]
        assert isinstance(log, list)
        log.clear()
        assert len(await store.decisions(limit=9)) == 1

    async def test_what_was_handed_in_can_be_changed_without_effect(self, store: Store, term: int) -> None:
        numbers = {"n": 1.0}
        record = DecisionRecord("d", 0, term, "place", "chat", "", "", "", numbers)
        await store.commit(Transaction(term, decisions=(record,)))
        numbers["n"] = 2.0
        assert (await store.decisions(limit=1))[0].numbers == {"n": 1.0}

    async def compact(self, store: Store, term: int) -> None:
        """Makes the store forget all changes so far; by default it takes more changes than it keeps."""
        for _ in range(HISTORY_KEPT + 1):
            await store.commit(Transaction(term, puts=(MODEL,)))
