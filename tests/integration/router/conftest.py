from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import uvloop
from google.protobuf import json_format

from chiron.policy.words import RequestClass
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, inference_pb2_grpc
from services.router.app import Router
from services.router.config import RouterConfig
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeWorker
from tests.support.wait import eventually

MODEL = "m"
StartRouter = Callable[..., Awaitable["RunningRouter"]]
StartWorker = Callable[..., Awaitable[FakeWorker]]


class RunningRouter:
    """A router in this process, on real sockets."""

    def __init__(self, router: Router, address: str) -> None:
        self.router = router
        self.address = address
        self.channel = open_channel(address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def core(self):
        return self.router._placer._core

    async def sees(self, *workers: FakeWorker) -> None:
        """Waits until it may send requests to these workers."""
        ids = {worker.instance_id for worker in workers}
        await eventually(
            lambda: ids <= {key for key, found in self.core._instances.items() if found.usable},
            what=f"router sees {ids}",
        )

    def waiting(self) -> tuple[int, int] | None:
        """Interactive and batch requests that wait in it; None while it knows nothing of the model."""
        queue = self.core.queues().get(MODEL)
        if queue is None:
            return None
        return queue.count(RequestClass.INTERACTIVE), queue.count(RequestClass.BATCH)

    async def queued(self, interactive: int, batch: int = 0) -> None:
        """Waits until this many requests wait in it."""
        await eventually(
            lambda: self.waiting() == (interactive, batch),
            what=f"{interactive} + {batch} requests wait",
        )


def pytest_asyncio_loop_factories(config: object, item: object) -> dict[str, object]:
    """The loop that services run on; its timers differ from asyncio's in small ways."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def start_worker(stack: AsyncExitStack) -> StartWorker:
    async def start(instance_id: str, **options: object) -> FakeWorker:
        worker = await FakeWorker(instance_id, **options).start()
        stack.push_async_callback(worker.stop)
        return worker

    return start


@pytest.fixture
async def controller(stack: AsyncExitStack) -> FakeRouterController:
    controller = await FakeRouterController().start()
    stack.push_async_callback(controller.stop)
    return controller


@pytest.fixture
def start_router(stack: AsyncExitStack, controller: FakeRouterController) -> StartRouter:
    async def start(*workers: FakeWorker, tracing: bool = False, **options: object) -> RunningRouter:
        """A router that serves model `m` on these workers."""
        if workers and not controller.table.models:
            controller.add(MODEL, workers)
        settings = {"drain_timeout_s": 0.0, **options}
        config = RouterConfig(listen="127.0.0.1:0", controller=(controller.address,), **settings)
        router = Router(config, tracing=tracing)
        running = RunningRouter(router, await router.start())
        stack.push_async_callback(router.stop)
        stack.push_async_callback(running.channel.close)
        await eventually(router._placer.has_table.is_set)
        await running.sees(*workers)
        return running

    return start


class RealWorker:
    """One `python -m services.worker`."""

    def __init__(self, instance_id: str, process: asyncio.subprocess.Process, address: str) -> None:
        self.instance_id = instance_id
        self.process = process
        self.address = address


@pytest.fixture
async def start_real(tmp_path: Path, stack):
    async def start(instance_id: str, *, batch_size: int = 8) -> RealWorker:
        spec = cluster_pb2.ModelSpec(name="m", engine="sim", gpus_per_instance=1, max_batch_size=batch_size)
        file = tmp_path / f"{instance_id}.json"
        file.write_text(json_format.MessageToJson(spec))
        settings = {
            "instance_id": instance_id,
            "incarnation": "1",
            "spec_file": str(file),
            "socket": str(tmp_path / f"{instance_id}.sock"),
            "listen": "127.0.0.1:0",
            "require_tickets": "false",
        }
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.worker", *arguments, stdout=asyncio.subprocess.PIPE
        )

        async def stop() -> None:
            if process.returncode is None:
                process.kill()
            await process.communicate()

        stack.push_async_callback(stop)
        return RealWorker(instance_id, process, json.loads(await process.stdout.readline())["address"])

    return start
