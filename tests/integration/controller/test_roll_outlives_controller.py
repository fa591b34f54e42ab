"""A roll goes on under another controller, and stalled stays stalled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from chiron.cluster import ClusterAdmin
from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.controller_process import controllers
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.fake_agent import FakeAgent
from tests.support.wait import eventually

READY, FAILED = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_FAILED
LOADING = types_pb2.INSTANCE_STATE_LOADING


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


def spec(revision: str) -> pb.ModelSpec:
    return pb.ModelSpec(name="chat", engine="sim", gpus_per_instance=1, min_instances=2, revision=revision)


async def until(admin: ClusterAdmin, state: pb.RollState.ValueType, *, ready: int) -> pb.ModelStatus:
    shown: list[pb.ModelStatus] = []

    async def there() -> bool:
        shown[:] = [one for one in (await admin.snapshot()).models if one.spec.name == "chat"]
        return (shown[0].roll.state, shown[0].ready_instances) == (state, ready)

    await eventually(there, within_s=30.0, what=f"roll state {state}")
    return shown[0]


def revisions(instances: Iterable[control_pb2.DesiredInstance], model: str = "chat") -> list[str]:
    """Those of a model's instances that are to run."""
    running = [one for one in instances if one.state == control_pb2.DESIRED_STATE_RUNNING]
    return sorted(one.spec.revision for one in running if one.spec.name == model)


@pytest.mark.parametrize(
    ("comes_to", "before", "after"),
    [
        (LOADING, pb.ROLL_STATE_ROLLING, pb.ROLL_STATE_DONE),
        (FAILED, pb.ROLL_STATE_STALLED, pb.ROLL_STATE_STALLED),
    ],
    ids=["rolling", "stalled"],
)
async def test_another_controller_finds_the_roll_where_it_was(
    etcd: EtcdServer,
    tmp_path: Path,
    comes_to: types_pb2.InstanceState.ValueType,
    before: pb.RollState.ValueType,
    after: pb.RollState.ValueType,
) -> None:
    settings = (f"store.prefix=/roll/{comes_to}", "roll_hold_s=0.2")
    async with (
        controllers(tmp_path, [etcd.endpoint], *settings, count=1) as alone,
        alone.admin(timeout_s=30.0) as admin,
    ):
        [process] = alone.processes
        await alone.leader()
        async with FakeAgent(process.address, "a", gpus=3) as agent:
            await admin.apply_model(spec("a"))
            await agent.until(lambda agent: len(agent.wanted()) == 2)
            agent.state, agent.reason = comes_to, "because"
            await admin.apply_model(spec("b"))
            left = await until(admin, before, ready=2)
            term, statuses = agent.welcome.term, agent.statuses
        await process.kill()
        await process.start()
        await alone.leader()
        versions = await admin.versions("chat")
        async with FakeAgent(process.address, "a", gpus=3, highest_term=term) as agent:
            agent.statuses = statuses
            for status in statuses.values():
                if status.state == LOADING:
                    status.state = READY
            await agent.report()
            due = ["b", "b"] if after == pb.ROLL_STATE_DONE else ["a", "a"]
            # What the store says of the roll holds before this controller has told its agents anything.
            await agent.until(
                lambda agent: revisions(agent.wanted()) == due, f"the agent is told to run {due}"
            )
            await until(admin, after, ready=2)
            # A model more is a change that the agent hears of: what went before it has reached it as well.
            await admin.apply_model(
                pb.ModelSpec(name="later", engine="sim", gpus_per_instance=1, min_instances=1)
            )
            await agent.until(lambda agent: revisions(agent.wanted(), "later") == [""])
            found = await until(admin, after, ready=2)
            told = [revisions(level.instances) for level in agent.levels]

    assert [one.spec_version for one in versions] == [2, 1]
    assert (found.roll.from_version, found.roll.to_version) == (1, 2)
    assert told[-1] == due
    if after == pb.ROLL_STATE_STALLED:
        assert found.roll.reason == left.roll.reason != ""
        assert told == [due] * len(told), "it is told nothing else at any time"
