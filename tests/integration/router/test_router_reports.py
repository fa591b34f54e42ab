"""What routers report adds up to what clients asked, whoever was away meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from chiron.client import Client
from chiron.internal.v1 import control_pb2, router_pb2, router_pb2_grpc
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeWorker
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually


class Sums:
    """All reports that controllers have had, added up."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self.reports: list[control_pb2.RouterReport] = []

    def read(self, controller: FakeRouterController) -> Counter[str]:
        while not controller.reports.empty():
            report = controller.reports.get_nowait()
            self.reports.append(report)
            for demand in report.demand:
                for name in ("arrived", "finished", "refused", "failed"):
                    counts = getattr(demand, name)
                    self.totals[name] += counts.interactive + counts.batch
        return +self.totals


async def answering(worker: FakeWorker) -> None:
    """Answers every call with one token."""
    while True:
        call = await worker.calls.get()
        call.send(
            pb.GenerateResponse(
                deltas=[
                    pb.OutputDelta(
                        token_ids=[1],
                        text="x",
                        text_ends=[1],
                        finish_reason=pb.FINISH_REASON_LENGTH,
                        usage=pb.Usage(prompt_tokens=1, completion_tokens=1),
                        timing=pb.Timing(),
                    )
                ]
            )
        )
        call.finish()
        worker.publish(started=[call.request.request_id])
        worker.publish(finished=[call.request.request_id])


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    worker = await FakeWorker("a", batch_size=1000).start()
    task = asyncio.create_task(answering(worker))
    yield worker
    task.cancel()
    await worker.stop()


def controller_with(worker: FakeWorker, *, term: int = 1) -> FakeRouterController:
    controller = FakeRouterController(term=term)
    controller.add("m", [worker])
    return controller


async def ask(client: Client, count: int) -> None:
    answers = [client.complete(model="m", prompt="x", max_tokens=1) for _ in range(count)]
    await asyncio.gather(*answers)


async def state(router: RouterProcess) -> router_pb2.GetRouterStateResponse:
    stub = router_pb2_grpc.RouterServiceStub(router.channel)
    return await stub.GetRouterState(router_pb2.GetRouterStateRequest())


async def ready(router: RouterProcess) -> RouterProcess:
    """The router, once it has heard its worker."""

    async def heard() -> bool:
        return [one.state for one in (await state(router)).instances] == [types_pb2.INSTANCE_STATE_READY]

    await eventually(heard)
    return router


async def test_what_came_while_no_controller_could_be_reached_is_in_one_report_afterwards(
    worker: FakeWorker, tmp_path: Path
) -> None:
    first, sums = await controller_with(worker).start(), Sums()
    async with (
        router_process(tmp_path, first.address, report_interval_s=0.1) as router,
        Client(router.address, lookaside=False) as client,
    ):
        await ready(router)
        await ask(client, 30)
        await eventually(lambda: sums.read(first) == {"arrived": 30, "finished": 30})
        await first.stop()
        await eventually(lambda: "serving on the last table" in router.log)
        for _ in range(4):
            await ask(client, 10)
        # It grows with the models of the table, not with the requests.
        assert (await state(router)).counts.untold_models == 1
        later = await controller_with(worker, term=2).start(first.address)
        told = len(sums.reports)
        await eventually(lambda: sums.read(later) == {"arrived": 70, "finished": 70})
        await later.stop()
    assert sums.reports[told].demand[0].arrived.interactive == 40
    assert sums.reports[told].sequence == 1


@pytest.mark.parametrize("lookaside", [False, True])
async def test_two_routers_count_each_request_once(
    worker: FakeWorker, tmp_path: Path, lookaside: bool
) -> None:
    controller, sums = await controller_with(worker).start(), Sums()
    async with AsyncExitStack() as stack:
        routers = [
            await stack.enter_async_context(
                router_process(tmp_path, controller.address, router_id=name, report_interval_s=0.1)
            )
            for name in ("one", "two")
        ]
        for router in routers:
            await ready(router)
        addresses = [router.address for router in routers]
        clients = [
            await stack.enter_async_context(Client(order, lookaside=lookaside))
            for order in (addresses, addresses[::-1])
        ]
        for client in clients:
            await ask(client, 20)
        await eventually(lambda: sums.read(controller) == {"arrived": 40, "finished": 40})
        # The second router of each client takes over: what it retries is no new request.
        await routers[0].stop()
        for client in clients:
            await ask(client, 10)
        await eventually(lambda: sums.read(controller)["finished"] == 60)
    await controller.stop()
    assert sums.totals["arrived"] == 60
    assert sums.totals["failed"] == 0


async def test_a_request_that_could_not_use_its_ticket_is_counted_once(
    worker: FakeWorker, tmp_path: Path
) -> None:
    controller, sums = await controller_with(worker).start(), Sums()
    async with router_process(tmp_path, controller.address, report_interval_s=0.1) as router:
        await ready(router)
        await router.stub.Route(pb.RouteRequest(request_id="r", model="m"))
        request = pb.GenerateRequest(request_id="r", model="m", prompt="x")
        assert [chunk.deltas[0].text async for chunk in router.stub.Generate(request)] == ["x"]
        await eventually(lambda: sums.read(controller)["finished"] == 1)
    await controller.stop()
    assert +sums.totals == {"arrived": 1, "finished": 1}


async def test_what_a_router_turns_away_when_it_stops_came_here_and_ends_elsewhere(
    start_worker, start_router, controller
) -> None:
    router, sums = await start_router(await start_worker("a"), report_interval_s=0.05), Sums()
    router.router._serving.refuse("this router is shutting down")
    for attempt, model in ((0, "m"), (1, "m"), (0, "never applied")):
        with pytest.raises(grpc.aio.AioRpcError):
            await router.stub.Route(pb.RouteRequest(model=model, attempt=attempt))
    await eventually(lambda: sums.read(controller) == {"arrived": 1})
