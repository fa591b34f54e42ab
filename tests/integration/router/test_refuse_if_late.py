"""Callers that ask for it are refused at once, with the estimate, where they would wait in vain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from chiron.client import Client, QueueFull, RequestClass, Slo, SloOutOfReach
from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.policy.waiting import WaitingTimeEstimator
from chiron.policy.words import RequestClass as Kind
from chiron.v1 import types_pb2
from tests.support.chiron_command import chiron
from tests.support.wait import eventually

TIGHT, LOOSE = Slo(ttft_ms=1_000), Slo(ttft_ms=3_600_000)
BEHIND_TWO = WaitingTimeEstimator().estimate({Kind.INTERACTIVE: 2}, 10.0, request_class=Kind.INTERACTIVE)


@pytest.fixture
def full(start_worker, start_router):
    """Starts a router with one full instance and two requests that wait."""

    @contextlib.asynccontextmanager
    async def full(**options: object) -> AsyncIterator:
        worker = await start_worker("a", batch_size=1)
        worker.load.running.interactive = 1
        router = await start_router(worker, worker_queue=0, **options)
        async with Client(router.address) as client:
            waiting = [asyncio.create_task(client.complete(model="m", prompt="x")) for _ in range(2)]
            await router.queued(2)
            try:
                yield router
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    return full


@pytest.mark.parametrize("lookaside", [True, False])
async def test_the_sdk_raises_the_numbers(full, lookaside: bool) -> None:
    async with full() as router, Client(router.address, lookaside=lookaside) as client:
        with pytest.raises(SloOutOfReach) as caught:
            await client.complete(model="m", prompt="x", slo=TIGHT, refuse_if_late=True)
        estimate = caught.value.estimate
        assert estimate is not None
        assert estimate.mean_s == pytest.approx(BEHIND_TWO.mean_s, abs=1e-3)
        assert estimate.quantile_s == pytest.approx(BEHIND_TWO.quantile_s, abs=1e-3)
        assert (estimate.quantile, estimate.requests_ahead, estimate.tokens_per_s) == (0.95, 2, 10.0)
        assert 0 < estimate.budget_s <= 1.0
        assert caught.value.reason == "SLO_OUT_OF_REACH"
        assert 0 < caught.value.retry_after_s <= 60.0
        assert router.waiting() == (2, 0)


async def test_whoever_does_not_ask_or_has_time_waits(full) -> None:
    async with full() as router, Client(router.address) as client:
        waits = [
            asyncio.create_task(client.complete(model="m", prompt="x", slo=slo, refuse_if_late=asks))
            for slo, asks in ((TIGHT, None), (TIGHT, False), (LOOSE, True), (None, True))
        ]
        await router.queued(6)
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await router.queued(2)


async def test_the_model_or_the_router_may_ask_for_all(full, controller) -> None:
    async with full() as router, Client(router.address) as client:
        defaults = controller.table.models[0].slo_defaults
        defaults.interactive.MergeFrom(types_pb2.Slo(ttft_ms=1_000, refuse_if_late=True))
        controller.send(models=[controller.table.models[0]])
        await eventually(lambda: router.core.table.models["m"].slo_defaults.interactive.refuse_if_late)
        with pytest.raises(SloOutOfReach):
            await client.complete(model="m", prompt="x")
        waits = asyncio.create_task(client.complete(model="m", prompt="x", refuse_if_late=False))
        await router.queued(3)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)


async def test_a_router_refuses_late_ones_where_it_is_told_to(full) -> None:
    async with full(refuse_if_late=True) as router, Client(router.address) as client:
        with pytest.raises(SloOutOfReach):
            await client.complete(model="m", prompt="x", slo=TIGHT)
        with pytest.raises(SloOutOfReach):
            await client.complete(
                model="m", prompt="x", request_class=RequestClass.BATCH, slo=Slo(deadline_s=1.0)
            )


async def test_a_full_queue_tells_the_estimate_too(full) -> None:
    async with full(queue_limit=2) as router, Client(router.address) as client:
        with pytest.raises(QueueFull) as caught:
            await client.complete(model="m", prompt="x")
        assert caught.value.estimate is not None
        assert caught.value.estimate.requests_ahead == 2
        assert caught.value.estimate.budget_s is None


async def test_the_command_line_asks_and_shows(full) -> None:
    async with full() as router:
        stub = router_pb2_grpc.RouterServiceStub(router.channel)
        state = await stub.GetRouterState(router_pb2.GetRouterStateRequest())
        [queue] = state.queues
        assert (queue.model, queue.waiting.interactive, queue.interactive.ahead) == ("m", 2, 2)
        assert queue.interactive.mean_ms == pytest.approx(1e3 * BEHIND_TWO.mean_s)
        refused = await chiron(
            "generate", "m", "Hello", "--slo-ttft=1000", "--refuse-if-late", f"--router={router.address}"
        )
        assert refused.status != 0
        assert "the SLO is out of reach: a request for 'm' would wait 51.2 s" in refused.stderr
