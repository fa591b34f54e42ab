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
