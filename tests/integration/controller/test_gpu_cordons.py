"""An operator takes a GPU out of use: the order reaches its agent, and the answer comes when it is obeyed."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from chiron.rpc.errors import reason_of
from chiron.v1 import cluster_pb2 as pb
from tests.support.fake_agent import FakeAgent
from tests.support.wait import eventually


def cordon(gpu: int = 1, *, node: str = "a", cordoned: bool = True) -> pb.SetGpuCordonRequest:
    return pb.SetGpuCordonRequest(node_id=node, gpu=gpu, cordoned=cordoned, reason="its fan rattles")


async def obey(agent: FakeAgent) -> None:
    """Carries out the newest orders, as a real agent does."""
    await agent.until(lambda agent: agent.levels and agent.levels[-1].gpu_orders, "an order arrives")
    for order in agent.levels[-1].gpu_orders:
        for gpu in agent.gpus:
            if gpu.uuid == order.gpu_uuid:
                gpu.cordoned, gpu.healthy = order.cordoned, not order.cordoned
                gpu.reason = f"cordoned: {order.reason}" if order.cordoned else ""


async def test_the_answer_comes_once_the_agent_reports_it_and_status_shows_it(served) -> None:
    agent = await served.agent("a")
    answering = asyncio.ensure_future(served.cluster.SetGpuCordon(cordon()))
    await agent.until(lambda agent: agent.levels and agent.levels[-1].gpu_orders)
    assert not answering.done()
    await obey(agent)
    answer = await answering
    assert (answer.gpu.index, answer.gpu.cordoned, answer.gpu.healthy) == (1, True, False)
    shown = (await served.snapshot()).nodes[0].gpus[1]
    assert (shown.cordoned, shown.healthy, shown.reason) == (True, False, "cordoned: its fan rattles")
    answering = asyncio.ensure_future(served.cluster.SetGpuCordon(cordon(cordoned=False)))
    await eventually(
        lambda: agent.levels[-1].gpu_orders and not agent.levels[-1].gpu_orders[0].cordoned,
        what="the second order arrives",
    )
    await obey(agent)
    assert (await answering).gpu.healthy


async def test_what_is_so_already_is_answered_at_once(served) -> None:
    await served.agent("a", obey=False)
    await eventually(lambda: served.controller.registry.agents["a"].gpus)
    answer = await served.cluster.SetGpuCordon(cordon(cordoned=False))
    assert not answer.gpu.cordoned


@pytest.mark.parametrize(
    ("request_", "reason", "text"),
    [
        (cordon(node="b"), "NODE_NOT_FOUND", "node 'b' is not connected"),
        (cordon(gpu=7), "INVALID_ARGUMENT", "gpu: a has GPUs 0, 1, not 7"),
    ],
)
async def test_an_order_for_what_is_not_there_is_refused(served, request_, reason: str, text: str) -> None:
    await served.agent("a")
    await eventually(lambda: served.controller.registry.agents["a"].gpus)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.SetGpuCordon(request_)
    assert reason_of(caught.value) == reason
    assert text in str(caught.value.details())


async def test_an_agent_that_does_not_obey_is_told_of(served) -> None:
    agent = await served.agent("a")
    served.controller.gpu_orders._patience_s = 0.3
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.cluster.SetGpuCordon(cordon())
    assert "the agent of a has not carried it out within 0.3 s" in str(caught.value.details())
    count = len(agent.levels)
    served.controller.registry.agents["a"].wake.beat()
    await agent.until(lambda agent: len(agent.levels) > count)
    assert list(agent.levels[-1].gpu_orders) == [], "the order has ended with its answer"


async def test_an_agents_problems_are_shown(served) -> None:
    agent = await served.agent("a")
    agent.problems = ["the journal cannot be written: No space left on device"]

    async def shown() -> bool:
        return list((await served.snapshot()).nodes[0].problems) == agent.problems

    await eventually(shown)
