"""What operators ask for, and what agents are told."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.wait import eventually

STOPPED = control_pb2.DESIRED_STATE_STOPPED
READY = types_pb2.INSTANCE_STATE_READY
FAILED = types_pb2.INSTANCE_STATE_FAILED
DRAINING = types_pb2.INSTANCE_STATE_DRAINING


async def ready(served, count: int) -> None:
    async def has() -> bool:
        models = (await served.snapshot()).models
        return [one.ready_instances for one in models] == [count]

    await eventually(has, what=f"{count} ready instances")


async def test_an_applied_model_is_placed_reported_ready_and_shown(served) -> None:
    left, right = await served.agent("left"), await served.agent("right")
    answer = await served.apply(name="chat", min_instances=2)
    assert answer.changed
    assert answer.model.spec.max_batch_size == 256
    assert answer.model.spec.role == types_pb2.ROLE_MIXED

    await left.until(lambda agent: len(agent.wanted()) == 1)
    await right.until(lambda agent: len(agent.wanted()) == 1)
    wanted = left.wanted()[0]
    assert wanted.spec == answer.model.spec
    assert wanted.instance_id.startswith("chat-")
    assert list(wanted.gpu_indexes) == [0]
    assert left.levels[-1].term == left.welcome.term

    await ready(served, 2)
    places = await served.decisions("place")
    assert {one.node_id for one in places} == {"left", "right"}
    assert all(one.reason and one.numbers["desired"] == 2 for one in places)


async def test_the_same_spec_again_changes_nothing(served) -> None:
    await served.apply(name="chat")
    again = await served.apply(name="chat")
    assert not again.changed
    assert again.model.spec_version == 1
    assert len(await served.decisions("apply_model")) == 1


async def test_a_model_without_room_says_so_with_the_numbers_and_is_placed_when_a_node_joins(served) -> None:
    await served.agent("small", gpus=1)
    answer = await served.apply(name="big", gpus_per_instance=2, min_instances=1)
    assert "needs 2 GPUs on one node; most free on a node: 1" in answer.model.reason
    large = await served.agent("large", gpus=2)
    await large.until(lambda agent: agent.wanted())
    await ready(served, 1)
    assert (await served.snapshot()).models[0].reason == ""


async def test_scaling_within_the_spec_starts_and_stops_instances(served) -> None:
    agent = await served.agent("a", gpus=4)
    await served.apply(name="chat", min_instances=1, max_instances=3)
    await ready(served, 1)
    await served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chat", instances=3))
    await ready(served, 3)
    await served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chat", instances=1))
    await ready(served, 1)
    await agent.until(lambda agent: len(agent.levels[-1].instances) == 1, "stopped instances are forgotten")
    assert (await served.decisions("scale"))[0].numbers == {"from": 3, "to": 1, "failed": 0}


async def test_scaling_outside_the_spec_is_refused_naming_the_field(served) -> None:
    await served.apply(name="chat", min_instances=1, max_instances=3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chat", instances=4))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "instances: must be 1 to 3" in caught.value.details()


async def test_scaling_without_a_maximum_ends_at_the_largest_count_of_a_spec(served) -> None:
    await served.apply(name="chat")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chat", instances=1_000_000_000))
    assert "instances: must be 0 to 10000" in caught.value.details()


async def test_a_bad_spec_is_refused_naming_every_field(served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.apply(name="Chat!", engine="quick", gpus_per_instance=0)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    bad = error_details_pb2.BadRequest()
    details = rpc_status.from_call(caught.value).details
    assert any(one.Unpack(bad) for one in details)
    assert [one.field for one in bad.field_violations] == [
        "spec.name",
        "spec.gpus_per_instance",
        "spec.engine",
    ]
    assert list((await served.snapshot()).models) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda cluster: cluster.DeleteModel(cluster_pb2.DeleteModelRequest(name="chta")),
        lambda cluster: cluster.ScaleModel(cluster_pb2.ScaleModelRequest(name="chta", instances=1)),
    ],
)
async def test_an_unknown_model_is_not_found_and_those_there_are_named(served, call) -> None:
    await served.apply(name="chat")
    await served.apply(name="code")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(served.cluster)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason_of(caught.value) == "MODEL_NOT_FOUND"
    assert "'chta'; there are: chat, code" in caught.value.details()


async def test_a_deleted_models_instances_stop_and_are_forgotten(served) -> None:
    agent = await served.agent("a")
    await served.apply(name="chat", min_instances=2)
    await ready(served, 2)
    agent.obey = False
    await served.cluster.DeleteModel(cluster_pb2.DeleteModelRequest(name="chat"))
    await agent.until(lambda agent: len(agent.wanted(STOPPED)) == 2)
    shown = await served.snapshot()
    assert list(shown.models) == []
    assert {one.state for one in shown.instances} == {DRAINING}
    for status in agent.statuses.values():
        status.state = types_pb2.INSTANCE_STATE_STOPPED
    await agent.report()
    await agent.until(lambda agent: not agent.levels[-1].instances)
    assert list((await served.snapshot()).instances) == []


async def test_a_model_applied_again_after_deletion_has_a_newer_version(served) -> None:
    await served.apply(name="chat")
    await served.cluster.DeleteModel(cluster_pb2.DeleteModelRequest(name="chat"))
    assert (await served.apply(name="chat")).model.spec_version == 2


async def test_a_changed_spec_replaces_instances_one_at_a_time(served) -> None:
    agent = await served.agent("a", gpus=3)
    await served.apply(name="chat", min_instances=2)
    await ready(served, 2)
    await served.apply(name="chat", min_instances=2, revision="b")
    await agent.until(
        lambda agent: [one.spec.revision for one in agent.levels[-1].instances] == ["b", "b"],
        "both instances run the new revision",
    )
    most_running = max(
        sum(one.state != STOPPED for one in level.instances) for level in agent.levels if level.instances
    )
    assert most_running == 3
    await ready(served, 2)


async def test_a_failed_instance_shows_its_reason_and_is_tried_again_only_when_asked(served) -> None:
    agent = await served.agent("a", state=FAILED, reason="no such weights")
    good = await served.agent("b", gpus=0)
    await served.apply(name="chat", min_instances=1)

    async def failed() -> bool:
        return "no such weights" in (await served.snapshot()).models[0].reason

    await eventually(failed)
    first = [one.instance_id for one in (await served.snapshot()).instances]
    agent.state, agent.reason = types_pb2.INSTANCE_STATE_READY, ""
    await agent.report()
    [shown] = (await served.snapshot()).instances
    assert ([shown.instance_id], shown.state) == (first, FAILED)
    again = await served.apply(name="chat", min_instances=1)
    assert not again.changed
    await ready(served, 1)
    assert [one.instance_id for one in agent.wanted()] != first
    assert good.wanted() == []


async def test_a_failed_instances_gpu_goes_to_others_and_it_stays_visible_when_its_agent_starts_again(
    served,
) -> None:
    agent = await served.agent("a", gpus=1, state=FAILED, reason="no such weights")
    await served.apply(name="bad", min_instances=1)

    async def states() -> dict[str, int]:
        return {one.model: one.state for one in (await served.snapshot()).instances}

    async def failed() -> bool:
        return await states() == {"bad": FAILED}

    async def served_beside_it() -> bool:
        return await states() == {"bad": FAILED, "good": READY}

    await eventually(failed)
    await agent.until(lambda agent: not agent.levels[-1].instances, "it is told of the failed one no more")
    agent.state, agent.reason = READY, ""
    await served.apply(name="good", min_instances=1)
    await eventually(served_beside_it)

    await agent.disconnect()
    agent.statuses.clear()
    await agent.connect()
    await agent.until(lambda agent: [one.model for one in agent.statuses.values()] == ["good"])
    await eventually(served_beside_it)
    shown = {one.model: one for one in (await served.snapshot()).instances}
    assert shown["bad"].reason == "no such weights"
    assert list(shown["bad"].gpu_indexes) == []
    assert list(shown["good"].gpu_indexes) == [0]
    assert [one.spec.name for one in agent.wanted()] == ["good"]


async def test_a_role_is_changed_on_the_running_instance(served) -> None:
    agent = await served.agent("a")
    await served.apply(name="chat", min_instances=1)
    await ready(served, 1)
    instance_id = agent.wanted()[0].instance_id
    request = cluster_pb2.SetRoleRequest(instance_id=instance_id, role=types_pb2.ROLE_BATCH)
    answer = await served.cluster.SetRole(request)
    assert answer.instance.role == types_pb2.ROLE_BATCH
    await agent.until(lambda agent: agent.wanted()[0].role == types_pb2.ROLE_BATCH)
    assert agent.wanted()[0].generation == 2
    assert (await served.decisions("set_role"))[0].instance_id == instance_id


async def test_a_role_needs_an_instance_and_a_value(served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.SetRole(
            cluster_pb2.SetRoleRequest(instance_id="chat-1", role=types_pb2.ROLE_BATCH)
        )
    assert reason_of(caught.value) == "INSTANCE_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.SetRole(cluster_pb2.SetRoleRequest(instance_id="chat-1"))
    assert "role: must be interactive, mixed or batch" in caught.value.details()


async def test_decisions_come_newest_first_and_by_model(served) -> None:
    for name in ("one", "two", "three"):
        await served.apply(name=name)
    request = cluster_pb2.ListDecisionsRequest(limit=2)
    newest = (await served.cluster.ListDecisions(request)).decisions
    assert [one.model for one in newest] == ["three", "two"]
    request = cluster_pb2.ListDecisionsRequest(model="one")
    [only] = (await served.cluster.ListDecisions(request)).decisions
    assert only.action == "apply_model"
    assert only.term == (await served.snapshot()).term
    assert only.time.seconds > 0


async def test_a_watch_shows_the_state_and_then_each_later_one(served) -> None:
    watch = served.cluster.WatchCluster(cluster_pb2.WatchClusterRequest())
    first = (await watch.read()).snapshot
    assert list(first.models) == []
    await served.apply(name="chat", min_instances=1)
    await served.agent("a")
    revisions = [first.revision]
    while True:
        shown = (await watch.read()).snapshot
        revisions.append(shown.revision)
        if shown.models and shown.models[0].ready_instances == 1:
            break
    assert revisions == sorted(revisions)
    assert revisions[-1] > revisions[0]
    watch.cancel()
