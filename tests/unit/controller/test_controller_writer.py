"""Too much for one commit becomes several, in a safe order; a store that fails is not asked again at once."""

from __future__ import annotations

import asyncio

import pytest

from chiron.internal.v1 import control_pb2
from chiron.store import (
    FencedError,
    InstanceRecord,
    Kind,
    MemoryStore,
    ModelRecord,
    NodeRecord,
    TooLargeError,
    Transaction,
    UnavailableError,
)
from services.global_controller.mirror import Mirror
from services.global_controller.store_health import StoreHealth, StoreState
from services.global_controller.view import Act
from services.global_controller.writer import Draft, Writer, split
from tests.support.decisions import explain
from tests.support.wait import eventually

STOPPED = control_pb2.DESIRED_STATE_STOPPED


def instance(name: str, *, stop: bool = False) -> InstanceRecord:
    desired = STOPPED if stop else control_pb2.DESIRED_STATE_RUNNING
    return InstanceRecord(
        instance_id=name,
        model="m",
        node_id="n",
        gpu_indexes=(0,),
        role=1,
        spec=b"",
        spec_version=1,
        desired=desired,
    )


class Bounded(MemoryStore):
    """Takes a few records at once, and nothing while it is told so."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.broken = ""
        self.commits: list[Transaction] = []

    async def commit(self, transaction: Transaction) -> int:
        if self.broken:
            raise UnavailableError(self.broken)
        if len(transaction.puts) + len(transaction.deletes) > self.most:
            raise TooLargeError("too much")
        self.commits.append(transaction)
        return await super().commit(transaction)


class World:
    def __init__(self, most: int = 1000) -> None:
        self.now = 0.0
        self.store = Bounded(most)
        self.mirror = Mirror(self.store)
        self.health = StoreHealth("memory", lambda: self.now)
        self.fenced: list[FencedError] = []
        self.writer = Writer(
            self.store, self.mirror, self.health, explain=explain, on_fenced=self.fenced.append
        )

    async def start(self) -> World:
        self.writer.term = await self.store.acquire_term()
        return self


def test_each_part_makes_sense_without_those_that_follow() -> None:
    puts = [instance("stops", stop=True), instance("starts"), ModelRecord("m", b"", 1, 1, 1)]
    deletes = [(Kind.NODE, "n"), (Kind.INSTANCE, "gone")]
    parts = split(Draft(puts, deletes), 1)
    assert [[record.key[1] for record in part.puts] for part in parts] == [
        ["m"],
        ["starts"],
        ["stops"],
        [],
        [],
    ]
    assert [[name for _, name in part.deletes] for part in parts] == [[], [], [], ["gone"], ["n"]]


def test_an_explanation_goes_with_what_it_explains_and_none_is_lost() -> None:
    acts = [
        Act("stop", "r", "m", "b"),
        Act("apply_model", "r", "m"),
        Act("place", "r", "m", "a"),
        Act("x", "", "", "z"),
    ]
    parts = split(Draft([instance("a"), instance("b", stop=True)], (), acts), 1)
    assert [[act.action for act in part.acts] for part in parts] == [["apply_model", "place"], ["stop", "x"]]


async def test_three_hundred_instances_are_written_in_as_many_commits_as_the_store_needs() -> None:
    world = await World(most=125).start()
    records = [instance(f"i{number}") for number in range(300)]
    acts = [Act("place", "r", "m", record.instance_id, "n") for record in records]
    await world.writer.write(lambda snapshot: Draft(records, (), acts))
    assert len(world.mirror.snapshot.instances) == 300
    assert world.mirror.snapshot == await world.store.read()
    assert len(await world.store.decisions(limit=1000)) == 300
    assert max(len(one.puts) for one in world.store.commits) <= 125
    # What it has learned is not tried again.
    commits = len(world.store.commits)
    await world.writer.write(lambda snapshot: Draft([], [record.key for record in records]))
    assert len(world.store.commits) - commits <= 5
    assert not world.mirror.snapshot.instances


async def test_one_record_that_is_too_large_by_itself_is_refused() -> None:
    world = await World(most=0).start()
    with pytest.raises(TooLargeError):
        await world.writer.write(lambda snapshot: Draft([instance("a")]))


async def test_while_the_store_fails_others_fail_at_once_and_one_tries_again_later() -> None:
    world = await World().start()
    world.store.broken = "the disk is full"
    with pytest.raises(UnavailableError, match="the disk is full"):
        await world.writer.write(lambda snapshot: Draft([instance("a")]))
    assert (world.health.state, world.health.reason) == (StoreState.UNAVAILABLE, "the disk is full")
    world.store.broken = ""
    with pytest.raises(UnavailableError, match="the disk is full"):
        await world.writer.write(lambda snapshot: Draft([instance("a")]))
    assert world.store.commits == []
    world.now = 2.0
    await world.writer.write(lambda snapshot: Draft([instance("a")]))
    assert (world.health.state, world.health.reason) == (StoreState.OK, "")


async def test_a_draft_that_changes_nothing_needs_no_store() -> None:
    world = await World().start()
    world.store.broken = "gone"
    await world.writer.write(lambda snapshot: Draft())
    await world.writer.write(lambda snapshot: None)
    assert world.health.state is StoreState.OK


async def test_a_term_that_has_ended_is_told() -> None:
    world = await World().start()
    await world.store.acquire_term()
    with pytest.raises(FencedError):
        await world.writer.write(lambda snapshot: Draft([instance("a")]))
    assert len(world.fenced) == 1


async def test_what_someone_else_has_written_between_is_read_and_then_written_upon() -> None:
    world = await World().start()
    node = NodeRecord("n", "h", ())
    await world.store.commit(Transaction(world.writer.term, puts=(node,)))
    seen: list[int] = []

    def build(snapshot: object) -> Draft:
        seen.append(world.mirror.snapshot.revision)
        return Draft([NodeRecord("n", "other", ())])

    await world.writer.write(build)
    assert seen == [0, 1]
    assert world.mirror.snapshot.nodes["n"].host == "other"


async def test_the_mirror_takes_no_change_twice() -> None:
    world = await World().start()
    following = asyncio.create_task(world.mirror.follow())
    try:
        for number in range(20):
            await world.writer.write(lambda snapshot, number=number: Draft([instance(f"i{number}")]))
            assert world.mirror.snapshot.revision == number + 1
        await world.store.commit(Transaction(world.writer.term, puts=(instance("late"),)))
        await eventually(lambda: world.mirror.snapshot.revision == 21)
        assert world.mirror.snapshot == await world.store.read()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
