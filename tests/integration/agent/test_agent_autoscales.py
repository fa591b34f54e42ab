"""The local autoscaler in a real agent, over real workers with the sim engine: limits follow what runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, inference_pb2, inference_pb2_grpc, types_pb2
from tests.support.agent_cases import StartAgent, kill_agent, toy_level
from tests.support.agent_process import AgentProcess
from tests.support.fake_controller import FakeController
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY
SLOW = {"time_scale": 10}
"""Steps of 20 ms: what runs costs the machine little."""
STAYING = "CHIRON_WORKER_REQUIRE_TICKETS=false,CHIRON_WORKER_PREEMPTION_ENABLED=false"
"""Batch work neither gives way nor is handed back: slots stay taken for as long as a test needs them."""
IMPOSSIBLE_ITL_MS, LOOSE_ITL_MS = 2.0, 2000.0
"""No batch size keeps the one, every one keeps the other, however busy the machine is."""


@contextlib.asynccontextmanager
async def stream(
    address: str, name: str, *, itl_ms: float, batch: bool, choices: int = 1, max_tokens: int = 3000
) -> AsyncIterator[None]:
    """A request that runs for the block."""
    request = inference_pb2.GenerateRequest(
        request_id=name,
        model="toy",
        prompt="Tell me",
        request_class=types_pb2.REQUEST_CLASS_BATCH if batch else types_pb2.REQUEST_CLASS_INTERACTIVE,
        slo=types_pb2.Slo(itl_ms=itl_ms),
        sampling=inference_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, n=choices),
    )

    async def read() -> None:
        async with open_channel(address) as channel:
            async for _ in inference_pb2_grpc.InferenceServiceStub(channel).Generate(request):
                pass

    reading = asyncio.create_task(read())
    try:
        yield
    finally:
        assert not reading.done(), f"{name} ended: {reading}"
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


@contextlib.asynccontextmanager
async def backlog(address: str) -> AsyncIterator[None]:
    """More batch work than there are slots, for the block."""
    async with contextlib.AsyncExitStack() as streams:
        for number in range(3):
            work = stream(address, f"backlog-{number}", itl_ms=LOOSE_ITL_MS, batch=True, choices=16)
            await streams.enter_async_context(work)
        yield


def shown(controller: FakeController) -> cluster_pb2.InstanceStatus:
    report = controller.instance("toy-1")
    return report.status if report is not None else cluster_pb2.InstanceStatus()


def batch_size(controller: FakeController) -> int:
    return shown(controller).load.batch_size


async def started(
    start: StartAgent, controller: FakeController, **keys: object
) -> tuple[AgentProcess, cluster_pb2.InstanceStatus]:
    process = await start(statistics_interval_ms=200, worker_env=STAYING, **keys)
    controller.send([toy_level(arguments=SLOW)])
    return process, await controller.until("toy-1", READY)


async def test_the_batch_size_follows_the_tightest_itl_slo_of_what_runs(
    agent: StartAgent, controller: FakeController
) -> None:
    _, status = await started(agent, controller)
    async with contextlib.AsyncExitStack() as first, contextlib.AsyncExitStack() as rest:
        await first.enter_async_context(
            stream(status.address, "first", itl_ms=LOOSE_ITL_MS, batch=True, choices=8)
        )
        await eventually(lambda: shown(controller).load.running.batch == 8, what="it has its slots")
        await rest.enter_async_context(backlog(status.address))
        await eventually(lambda: shown(controller).load.waiting.batch, what="all slots are in use")
        async with stream(status.address, "tight", itl_ms=IMPOSSIBLE_ITL_MS, batch=False):
            await eventually(lambda: shown(controller).load.waiting.interactive == 1)
            # It goes before all that waits as soon as a slot comes free.
            await first.aclose()
            await eventually(lambda: batch_size(controller) < 16, what="the batch size falls")
            local = shown(controller).local
            assert (local.autoscaler, local.error) == ("model", "")
            assert local.itl_slo_ms == IMPOSSIBLE_ITL_MS
            assert local.backpressure > 1
            assert local.changes >= 1
            await eventually(lambda: 0 < shown(controller).load.safe_batch_size < 16)
        await eventually(lambda: batch_size(controller) >= 24, what="the batch size rises again")
        assert shown(controller).load.safe_batch_size >= 24
    assert shown(controller).incarnation == status.incarnation


async def test_what_an_operator_has_set_holds_until_it_is_given_back(
    agent: StartAgent, controller: FakeController
) -> None:
    _, status = await started(agent, controller)
    async with backlog(status.address):
        await eventually(lambda: shown(controller).load.waiting.batch, what="all slots are in use")
        controller.send([toy_level(arguments=SLOW, generation=2, batch_size=3, step_token_budget=40)])
        await eventually(lambda: batch_size(controller) == 3)
        before = len(controller.reports)
        await eventually(lambda: len(controller.reports) > before + 5, what="samples come")
        local, load = shown(controller).local, shown(controller).load
        assert local.wanted_batch_size > 3, "the autoscaler goes on judging"
        assert (local.set_batch_size, local.set_step_token_budget) == (3, 40)
        assert (load.batch_size, load.step_token_budget) == (3, 40)
        controller.send([toy_level(arguments=SLOW, generation=3, step_token_budget=40)])
        await eventually(lambda: batch_size(controller) > 8, what="the autoscaler sets the batch size again")
        assert shown(controller).load.step_token_budget == 40, "the other limit is still the operator's"
        controller.send([toy_level(arguments=SLOW, generation=4)])
        await eventually(lambda: not shown(controller).local.set_step_token_budget)


async def test_an_agent_that_starts_again_goes_on_from_the_limits_in_force(
    agent: StartAgent, controller: FakeController
) -> None:
    process, status = await started(agent, controller)
    async with backlog(status.address):
        controller.send([toy_level(arguments=SLOW, generation=2, batch_size=5)])
        await eventually(lambda: batch_size(controller) == 5)
        await kill_agent(process, controller)
        # Nobody tells the new agent anything: what it knows is on its disk and in the worker's statistics.
        await agent(statistics_interval_ms=200)
        adopted = await controller.until("toy-1", READY)
        assert (adopted.incarnation, adopted.load.batch_size) == (status.incarnation, 5)
        await eventually(lambda: shown(controller).local.wanted_batch_size > 5, what="it decides again")
        assert (batch_size(controller), shown(controller).local.set_batch_size) == (5, 5)
        controller.send([toy_level(arguments=SLOW, generation=3)])
        await eventually(lambda: batch_size(controller) > 5)


@pytest.mark.parametrize("where", ["agent", "model"])
async def test_a_policys_mistake_holds_the_limits_and_shows(
    agent: StartAgent, controller: FakeController, where: str
) -> None:
    name = "tests.support.mistaken_local:RaisesAfterOne"
    process, status = await started(
        agent, controller, **({"local_autoscaler": name} if where == "agent" else {})
    )
    if where == "model":
        controller.send([toy_level(arguments=SLOW, generation=2, local_autoscaler=name)])
    await eventually(lambda: "I have lost my way" in shown(controller).local.error)
    assert (shown(controller).local.autoscaler, batch_size(controller)) == (name, 16)
    controller.send([toy_level(arguments=SLOW, generation=3, local_autoscaler="off")])
    await eventually(lambda: shown(controller).local.autoscaler == "off")
    assert (shown(controller).local.error, batch_size(controller)) == ("", 16)
    assert process.log().count("I have lost my way") == 1
    assert shown(controller).incarnation == status.incarnation
