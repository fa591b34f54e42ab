"""Models applied by an operator run on the nodes of agents that joined."""

from __future__ import annotations

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.wait import eventually

STOPPED = control_pb2.DESIRED_STATE_STOPPED


async def test_an_applied_model_is_placed_reported_ready_and_shown(served) -> None:
    left, right = await served.agent("left"), await served.agent("right")
    answer = await served.apply(name="chat", min_instances=2)
    assert answer.changed
    assert answer.model.spec.max_batch_size == 256
    assert answer.model.spec.role == types_pb2.ROLE_MIXED

    await left.until(lambda agent: len(agent.wanted()) == 1)
    await right.until(lambda agent: len(agent.wanted()) == 1)
    wanted = left.wanted()[0]
    assert wanted.spec.name == "chat"
    assert wanted.instance_id.startswith("chat-")
    assert list(wanted.gpu_indexes) == [0]
    assert left.levels[-1].term == left.welcome.term

    async def ready() -> bool:
        models = (await served.snapshot()).models
        return models[0].ready_instances == 2

    await eventually(ready)
    places = await served.decisions("place")
    assert {one.node_id for one in places} == {"left", "right"}
    assert all(one.reason and one.numbers["desired"] == 2 for one in places)
