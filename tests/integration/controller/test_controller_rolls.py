"""Rolls as operators start, follow and undo them, over the wire."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.fake_agent import FakeAgent
from tests.support.fake_router import FakeRouter
from tests.support.wait import eventually

STOPPED = control_pb2.DESIRED_STATE_STOPPED
READY = types_pb2.INSTANCE_STATE_READY
FAILED = types_pb2.INSTANCE_STATE_FAILED
DRAINING = types_pb2.INSTANCE_STATE_DRAINING


async def shown(served) -> pb.ModelStatus:
    [model] = (await served.snapshot()).models
    return model


async def until(served, condition: Callable[[pb.ModelStatus], object], what: str = "") -> pb.ModelStatus:
    async def met() -> bool:
        return bool(condition(await shown(served)))

    await eventually(met, what=what)
    return await shown(served)


def revisions(agent: FakeAgent) -> list[str]:
    """Of the workers that are wanted on the node."""
    return sorted(one.spec.revision for one in agent.wanted())


async def started(served, agent: FakeAgent, count: int = 2) -> None:
    await served.apply(name="chat", min_instances=count, revision="a")
    await until(served, lambda model: model.ready_instances == count)
    assert revisions(agent) == ["a"] * count


async def rolled(served, to_version: int) -> pb.ModelStatus:
    return await until(
        served,
        lambda model: (model.roll.state, model.roll.to_version) == (pb.ROLL_STATE_DONE, to_version),
        f"rolled to {to_version}",
    )


async def test_a_roll_and_the_way_back_are_shown_logged_and_kept(served) -> None:
    agent = await served.agent("a", gpus=3)
    await started(served, agent)
    answer = await served.apply(name="chat", min_instances=2, revision="b")
    assert (answer.model.roll.state, answer.model.roll.from_version) == (pb.ROLL_STATE_ROLLING, 1)
    await rolled(served, 2)
    assert revisions(agent) == ["b", "b"]

    answer = await served.cluster.RollbackModel(pb.RollbackModelRequest(name="chat"))
    assert (answer.model.spec_version, answer.model.roll.remaining) == (1, 2)
    done = await rolled(served, 1)
    assert revisions(agent) == ["a", "a"]
    assert (done.roll.replaced, done.roll.remaining, done.ready_instances) == (2, 0, 2)

    versions = (await served.cluster.ListModelVersions(pb.ListModelVersionsRequest(name="chat"))).versions
    assert [(one.spec_version, one.current, one.instances) for one in versions] == [
        (2, False, 0),
        (1, True, 2),
    ]
    assert all(one.applied.seconds > 0 for one in versions)
    acts = [
        (one.numbers["from_version"], one.numbers["to_version"]) for one in await served.decisions("roll")
    ]
    assert acts == [(2, 1), (2, 1), (1, 2), (1, 2)], "each roll is logged when it begins and when it is over"


async def test_the_hold_time_passes_without_any_other_event(served) -> None:
    agent = await served.agent("a", gpus=2, interval_s=0)
    await started(served, agent, count=1)
    await served.apply(name="chat", min_instances=1, revision="b")
    await rolled(served, 2)


async def test_a_broken_version_stalls_and_the_earlier_one_goes_on_until_it_is_rolled_back(served) -> None:
    agent = await served.agent("a", gpus=3)
    await started(served, agent)
    agent.state, agent.reason = FAILED, "no such weights"
    await served.apply(name="chat", min_instances=2, revision="broken")
    model = await until(served, lambda model: model.roll.state == pb.ROLL_STATE_STALLED)
    assert (model.ready_instances, model.roll.remaining, model.roll.replaced) == (2, 2, 0)
    assert "no such weights" in model.roll.reason
    assert "has stalled, the earlier one goes on" in model.reason
    assert revisions(agent) == ["a", "a"]

    agent.state, agent.reason = READY, ""
    await served.cluster.RollbackModel(pb.RollbackModelRequest(name="chat"))
    model = await rolled(served, 1)
    assert model.reason == ""
    snapshot = await served.snapshot()
    assert [one.spec_version for one in snapshot.instances] == [1, 1]


async def test_a_broken_version_is_rolled_back_by_itself_where_that_was_asked_for(served) -> None:
    agent = await served.agent("a", gpus=3)
    await started(served, agent)
    agent.state, agent.reason = FAILED, "no such weights"
    spec = pb.ModelSpec(name="chat", engine="sim", gpus_per_instance=1, min_instances=2, revision="broken")
    await served.cluster.ApplyModel(pb.ApplyModelRequest(spec=spec, rollback_on_failure=True))
    model = await rolled(served, 1)
    assert model.spec.revision == "a"
    assert model.roll.reason.startswith("spec version 2 was rolled back: ")
    assert (model.ready_instances, revisions(agent)) == (2, ["a", "a"])


async def test_requests_that_fail_at_the_new_version_stop_the_roll(served) -> None:
    agent = await served.agent("a", gpus=3)
    await started(served, agent)
    served.controller.config = served.controller.config.__class__(roll_hold_s=60.0)
    await served.apply(name="chat", min_instances=2, revision="b")
    await agent.until(lambda agent: any(one.spec_version == 2 for one in agent.statuses.values()))
    [new] = [one for one in agent.statuses.values() if one.spec_version == 2]
    new.load.finished_interactive.requests, new.load.failed_requests = 3, 2
    model = await until(served, lambda model: model.roll.state == pb.ROLL_STATE_STALLED)
    assert "failed 2 of its 5 requests" in model.roll.reason
    await agent.until(lambda agent: revisions(agent) == ["a", "a"], "the new one is stopped")


async def test_how_long_an_instance_may_drain_follows_the_present_spec(served) -> None:
    agent = await served.agent("a", gpus=2)
    agent.obey = False
    await served.apply(name="chat", min_instances=1, drain_timeout_s=5)
    await agent.until(lambda agent: [one.drain_timeout_s for one in agent.wanted()] == [5])
    answer = await served.apply(name="chat", min_instances=1, drain_timeout_s=90)
    assert not answer.model.HasField("roll")
    await served.cluster.DeleteModel(pb.DeleteModelRequest(name="chat"))
    await agent.until(lambda agent: [one.drain_timeout_s for one in agent.wanted(STOPPED)] == [90])


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda cluster: cluster.RollbackModel(pb.RollbackModelRequest(name="chta")), "MODEL_NOT_FOUND"),
        (
            lambda cluster: cluster.ListModelVersions(pb.ListModelVersionsRequest(name="chta")),
            "MODEL_NOT_FOUND",
        ),
        (
            lambda cluster: cluster.RollbackModel(pb.RollbackModelRequest(name="chat", to_version=7)),
            "VERSION_NOT_FOUND",
        ),
        (lambda cluster: cluster.RollbackModel(pb.RollbackModelRequest(name="chat")), "VERSION_NOT_FOUND"),
    ],
)
async def test_what_does_not_exist_is_refused(served, call, reason: str) -> None:
    await served.apply(name="chat")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(served.cluster)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(caught.value) == reason


async def test_routers_see_an_instance_drain_before_its_node_is_told_to_stop_it(served) -> None:
    agent = await served.agent("a", gpus=2)
    await started(served, agent, count=1)
    [instance] = agent.wanted()
    async with FakeRouter(served.address) as router:
        await eventually(lambda: instance.instance_id in router.instances)
        await served.cluster.DeleteModel(pb.DeleteModelRequest(name="chat"))
        await eventually(lambda: router.instances[instance.instance_id].state == DRAINING)
        assert [one.generation for one in agent.wanted()] == [instance.generation]
        await agent.until(lambda agent: not agent.levels[-1].instances, "it stops when the notice is over")
        await eventually(lambda: router.instances == {})
