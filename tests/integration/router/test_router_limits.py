"""A router holds nothing for those who have gone, however many they were and however they left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeCall, FakeWorker
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually

STREAMS, AT_ONCE = 3000, 250


@pytest.fixture
async def worker() -> AsyncIterator[FakeWorker]:
    """Gives each request one token and then idles; tells its subscribers who has come and gone."""
    worker = await FakeWorker("a", batch_size=10_000).start()
    begun: set[asyncio.Task[None]] = set()

    async def serve(call: FakeCall) -> None:
        worker.publish(started=[call.request.request_id])
        call.text("x")
        await call.ended.wait()
        worker.publish(finished=[call.request.request_id])

    async def accept() -> None:
        while True:
            task = asyncio.create_task(serve(await worker.calls.get()))
            begun.add(task)
            task.add_done_callback(begun.discard)

    accepting = asyncio.create_task(accept())
    yield worker
    accepting.cancel()
    await worker.stop()


@pytest.fixture
async def router(worker: FakeWorker, tmp_path: Path) -> AsyncIterator[RouterProcess]:
    controller = FakeRouterController()
    controller.add("m", [worker])
    await controller.start()
    settings = {"ticket_ttl_s": 0.5, "report_interval_s": 0.2, "queue_limit": STREAMS, "abandoned_per_s": 0}
    async with router_process(tmp_path, controller.address, **settings) as router:
        await eventually(lambda: _ready(router))
        yield router
    await controller.stop()


async def counts(router: RouterProcess) -> router_pb2.RouterCounts:
    stub = router_pb2_grpc.RouterServiceStub(router.channel)
    return (await stub.GetRouterState(router_pb2.GetRouterStateRequest())).counts


async def _ready(router: RouterProcess) -> bool:
    stub = router_pb2_grpc.RouterServiceStub(router.channel)
    state = await stub.GetRouterState(router_pb2.GetRouterStateRequest())
    return [one.state for one in state.instances] == [types_pb2.INSTANCE_STATE_READY]


async def emptied(router: RouterProcess) -> None:
    """Waits until it holds nothing but its subscription; fails with what it holds instead."""
    held = router_pb2.RouterCounts()

    async def empty() -> bool:
        held.CopyFrom(await counts(router))
        return held == router_pb2.RouterCounts(waiting=types_pb2.ClassCounts(), watches=1)

    try:
        await eventually(empty)
    except AssertionError:
        pytest.fail(f"the router still holds {held}")


async def _leave(call: grpc.aio.Call) -> None:
    call.cancel()
    # Until its end is here, the next ones would pile up on the way.
    await call.code()


def generate(index: int) -> pb.GenerateRequest:
    return pb.GenerateRequest(request_id=f"r{index}", model="m", prompt="x")


async def test_nothing_is_left_of_streams_that_were_opened_and_cancelled(router: RouterProcess) -> None:
    async def one(index: int) -> None:
        call = router.stub.Generate(generate(index))
        if index % 3:
            await call.read()
        else:
            await asyncio.sleep(0)
        await _leave(call)

    for first in range(0, STREAMS, AT_ONCE):
        await asyncio.gather(*(one(index) for index in range(first, first + AT_ONCE)))
    await emptied(router)


async def test_nothing_is_left_of_tickets_that_nobody_used(router: RouterProcess) -> None:
    async def one(index: int) -> None:
        await router.stub.Route(pb.RouteRequest(request_id=f"t{index}", model="m"))

    for first in range(0, STREAMS, AT_ONCE):
        await asyncio.gather(*(one(index) for index in range(first, first + AT_ONCE)))
    assert (await counts(router)).reservations > 0
    await emptied(router)


async def test_nothing_is_left_of_requests_that_left_the_queue(
    router: RouterProcess, worker: FakeWorker
) -> None:
    worker.load.batch_size = 1
    worker.load.running.interactive = 100
    worker.load.batch_credits = 0
    worker.publish()

    async def queued() -> int:
        waiting = (await counts(router)).waiting
        return waiting.interactive + waiting.batch

    kinds = (types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH)
    for first in range(0, STREAMS, AT_ONCE):
        calls = []
        for index in range(first, first + AT_ONCE):
            request = generate(index)
            request.request_class = kinds[index % 2]
            calls.append(router.stub.Generate(request))
        target = AT_ONCE
        await eventually(lambda target=target: _at(queued, target))
        await asyncio.gather(*(_leave(call) for call in calls))
        await eventually(lambda: _at(queued, 0))
    await emptied(router)


async def _at(count: object, target: int) -> bool:
    return await count() == target  # type: ignore[operator]


async def test_the_tables_inside_are_empty_too(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    router = await start_router(worker, ticket_ttl_s=0.2, worker_queue=0)
    holder = await router.stub.Route(pb.RouteRequest(request_id="holder", model="m"))
    worker.load.running.interactive = 1
    worker.publish(started=[holder.request_id])
    for _ in range(10):
        calls = [router.stub.Generate(pb.GenerateRequest(model="m", prompt="x")) for _ in range(50)]
        await router.queued(50)
        await asyncio.gather(*(_leave(call) for call in calls))
        await router.queued(0)
    worker.load.running.interactive = 0
    worker.publish(finished=[holder.request_id])
    placer, core = router.router._placer, router.core
    queue = core._models["m"].queue
    await eventually(lambda: not placer._waiters and not router.router._streams._streams)
    assert not any(queue._lines.values())
    assert not any(queue._keys.values())
    assert not queue.backlog.groups(0.0)
    await eventually(lambda: core._reservations.next_expiry is None)
    assert not core._reservations._of
    assert not core._reservations._by_expiry
    assert not core._reservations._tickets
    assert not core._reservations._batch
    await eventually(lambda: not core._instances["a"].lookaside)
    # A ticket that lapsed before its start was told of leaves no lookaside request to wait for.
    await eventually(lambda: core._instances["a"].started == 0)
