"""What a controller says of the local autoscalers, and what it shows of them."""

from __future__ import annotations

from chiron.v1 import cluster_pb2, types_pb2
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY


async def test_settings_that_need_no_new_workers_reach_those_that_run(served) -> None:
    agent = await served.agent("a", interval_s=0)
    await served.apply(name="chat", min_instances=1)
    await agent.until(lambda agent: agent.wanted())
    before = agent.wanted()[0]
    assert (before.local_autoscaler, before.drain_timeout_s) == ("", 0)
    await served.apply(
        name="chat",
        min_instances=1,
        autoscaling=cluster_pb2.AutoscalingSpec(local="reactive"),
        drain_timeout_s=7,
    )
    # Nothing else changes, and the agent reports nothing: the level alone brings it.
    await agent.until(lambda agent: agent.wanted()[0].local_autoscaler == "reactive")
    after = agent.wanted()[0]
    assert (after.instance_id, after.generation) == (before.instance_id, before.generation)
    assert (after.spec_version, after.drain_timeout_s) == (before.spec_version, 7)


async def test_what_a_local_autoscaler_makes_of_an_instance_is_shown(served) -> None:
    agent = await served.agent("a")
    await served.apply(name="chat", min_instances=1)
    await agent.until(lambda agent: agent.statuses)
    status = next(iter(agent.statuses.values()))
    status.load.batch_size, status.load.safe_batch_size = 32, 24
    status.local.CopyFrom(
        cluster_pb2.LocalControl(
            autoscaler="model", backpressure=0.8, wanted_batch_size=24, numbers={"lbp": 0.8}, error="odd"
        )
    )

    async def shown() -> bool:
        instances = (await served.snapshot()).instances
        return [(one.load.safe_batch_size, one.local) for one in instances] == [(24, status.local)]

    await eventually(shown)


async def test_limits_set_by_hand_reach_the_agent_and_are_given_back(served) -> None:
    agent = await served.agent("a")
    await served.apply(name="chat", min_instances=1)
    await agent.until(lambda agent: agent.wanted())
    first = agent.wanted()[0]
    request = cluster_pb2.SetInstanceLimitsRequest(instance_id=first.instance_id, batch_size=8)
    answer = await served.cluster.SetInstanceLimits(request)
    assert answer.instance.local.set_batch_size == 8
    await agent.until(lambda agent: agent.wanted()[0].batch_size == 8)
    assert (agent.wanted()[0].generation, agent.wanted()[0].step_token_budget) == (first.generation + 1, 0)
    (made,) = await served.decisions("set_limits")
    assert (made.instance_id, made.numbers["batch_size"]) == (first.instance_id, 8)
    request.batch_size = 0
    await served.cluster.SetInstanceLimits(request)
    await agent.until(lambda agent: agent.wanted()[0].batch_size == 0)
    assert len(await served.decisions("set_limits")) == 2


async def test_what_takes_an_instances_place_has_limits_of_its_own(served) -> None:
    agent = await served.agent("a")
    await served.apply(name="chat", min_instances=1)
    await agent.until(lambda agent: agent.wanted())
    first = agent.wanted()[0].instance_id
    await served.cluster.SetInstanceLimits(
        cluster_pb2.SetInstanceLimitsRequest(instance_id=first, batch_size=8)
    )
    await served.apply(name="chat", min_instances=1, revision="next")
    await agent.until(lambda agent: [one.instance_id for one in agent.wanted()] not in ([], [first]))
    limits = {one.instance_id: one.batch_size for one in agent.wanted()}
    assert limits.pop(first, 8) == 8
    assert list(limits.values()) == [0]


async def test_a_controller_that_has_forgotten_everything_learns_what_was_set_from_the_agent(served) -> None:
    agent = await served.agent("a", obey=False)
    agent.statuses["chat-1"] = cluster_pb2.InstanceStatus(
        instance_id="chat-1",
        model="chat",
        node_id="a",
        gpu_indexes=[0],
        role=types_pb2.ROLE_MIXED,
        state=READY,
        address="127.0.0.1:1",
        incarnation=1,
        generation=3,
        load=cluster_pb2.InstanceLoad(batch_size=8),
        local=cluster_pb2.LocalControl(autoscaler="model", set_batch_size=8),
    )
    await agent.report()
    await served.apply(name="chat", min_instances=1)
    await agent.until(lambda agent: [one.instance_id for one in agent.wanted()] == ["chat-1"])
    assert agent.wanted()[0].batch_size == 8
