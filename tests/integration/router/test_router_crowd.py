"""Several routers over one nearly full instance: its worker alone decides, and nobody notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from chiron.client import Client, RequestClass
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.v1 import types_pb2
from tests.support.fake_router_controller import FakeRouterController
from tests.support.router_process import RouterProcess, router_process
from tests.support.worker_process import WorkerProcess, slots, worker_process

SLOTS, WAITING = 4, 3
SPEC = {"name": "m", "engine": "sim", "gpusPerInstance": 1, "maxBatchSize": SLOTS}


def routed(instance_id: str, worker: WorkerProcess) -> control_pb2.RoutedInstance:
    return control_pb2.RoutedInstance(
        instance_id=instance_id,
        incarnation=7,
        model="m",
        address=worker.address,
        role=types_pb2.ROLE_MIXED,
        state=types_pb2.INSTANCE_STATE_READY,
    )


class Watch:
    """The most that a worker has had running, and in all, by what it tells its subscribers."""

    def __init__(self) -> None:
        self.running = 0
        self.interactive = 0
        self.batch = 0
        self.all = 0

    async def follow(self, worker: WorkerProcess) -> None:
        async for load in worker.network.WatchLoad(worker_pb2.WatchLoadRequest()):
            self.running = max(self.running, slots(load.running))
            # Between a slot's end and the engine's next step one more waits than may in the long run.
            interactive = load.running.interactive + load.waiting.interactive
            batch = load.running.batch + load.waiting.batch
            self.interactive, self.batch = max(self.interactive, interactive), max(self.batch, batch)
            self.all = max(self.all, interactive + batch)


class Crowd:
    """Clients that ask several routers at the same time, half of them past the routers."""

    def __init__(self, routers: list[RouterProcess]) -> None:
        self._routers = routers
        self.tokens: list[int] = []
        self.retries = 0

    async def ask(self, requests: int, lanes: int) -> None:
        """Each lane asks one request after the other; every fourth is a batch request."""
        clients = [Client(router.address, lookaside=direct) for router in self._routers for direct in (0, 1)]
        numbers = iter(range(requests))

        async def lane(client: Client) -> None:
            for number in numbers:
                kind = RequestClass.BATCH if number % 4 == 0 else RequestClass.INTERACTIVE
                answer = await client.complete(
                    model="m", prompt="one two", max_tokens=5, ignore_eos=True, request_class=kind
                )
                self.tokens.append(answer.usage.completion_tokens)

        await asyncio.gather(*(lane(clients[i % len(clients)]) for i in range(lanes)))
        self.retries = sum(client.stats.retries for client in clients if client.open_worker_channels)
        for client in clients:
            await client.close()


@asynccontextmanager
async def running(coroutine: object) -> AsyncIterator[None]:
    task = asyncio.ensure_future(coroutine)  # type: ignore[arg-type]
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def controller() -> AsyncIterator[FakeRouterController]:
    controller = await FakeRouterController().start()
    controller.add("m")
    yield controller
    await controller.stop()


@pytest.mark.parametrize(("count", "gives_way"), [(2, True), (3, True), (3, False)])
async def test_routers_that_ask_too_much_of_one_worker_never_overfill_it(
    count: int, gives_way: bool, controller: FakeRouterController, tmp_path: Path
) -> None:
    watch = Watch()
    settings = {"max_waiting": WAITING, "preemption.enabled": str(gives_way).lower()}
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(worker_process(tmp_path, SPEC, instance_id="a", **settings))
        await worker.until()
        controller.table.instances.append(routed("a", worker))
        routers = [
            await stack.enter_async_context(
                # Each of them would fill the worker's queue alone.
                router_process(tmp_path, controller.address, router_id=f"r{i}", worker_queue=WAITING)
            )
            for i in range(count)
        ]
        await stack.enter_async_context(running(watch.follow(worker)))
        crowd = Crowd(routers)
        await crowd.ask(requests=200, lanes=40)
        await worker.idle()
    assert crowd.tokens == [5] * 200
    assert 0 < watch.running <= SLOTS
    assert 0 < watch.interactive <= SLOTS + WAITING
    assert 0 < watch.batch <= SLOTS + WAITING
    # Where batch work gives way, what it holds takes no place from an interactive request.
    assert gives_way or watch.all <= SLOTS + WAITING
    # Otherwise the worker has refused nobody, and this shows nothing.
    assert crowd.retries > 0


async def test_a_worker_that_changes_under_load_sends_everyone_elsewhere(
    controller: FakeRouterController, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        workers = []
        for name in ("a", "b"):
            folder = tmp_path / name
            folder.mkdir()
            worker = await stack.enter_async_context(
                worker_process(folder, SPEC, instance_id=name, max_waiting=WAITING)
            )
            await worker.until()
            controller.table.instances.append(routed(name, worker))
            workers.append(worker)
        routers = [
            await stack.enter_async_context(
                router_process(tmp_path, controller.address, router_id=f"r{i}", worker_queue=WAITING)
            )
            for i in range(2)
        ]
        crowd = Crowd(routers)
        changing = workers[0].control
        # Batch work alone: every interactive request that is under way to it is refused.
        await changing.SetWorkerRole(worker_pb2.SetWorkerRoleRequest(role=types_pb2.ROLE_BATCH))
        asking = asyncio.ensure_future(crowd.ask(requests=400, lanes=24))
        for turn in range(20):
            await workers[1].load_when(lambda load: slots(load.running) > 0)
            role = types_pb2.ROLE_MIXED if turn % 2 == 0 else types_pb2.ROLE_BATCH
            await changing.SetWorkerRole(worker_pb2.SetWorkerRoleRequest(role=role))
        await changing.Drain(worker_pb2.DrainRequest())
        await asking
    assert crowd.tokens == [5] * 400
