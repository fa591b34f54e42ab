"""Two real workers of one model behind a router in this process, and streams that are read all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from chiron.client import Client
from chiron.internal.v1 import control_pb2
from chiron.internal.v1 import worker_pb2 as wpb
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.fake_router_controller import FakeRouterController
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess

SIM: dict[str, Any] = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "engineArgs": {"load_time_s": 0},
}
"""The model, but for its batch size."""
TALE: dict[str, Any] = {"model": "m", "prompt": "Tell me a tale.", "temperature": 0.0, "ignore_eos": True}
"""A request whose answer is the same whoever makes it, but for its length."""


def know(controller: FakeRouterController, workers: Mapping[str, WorkerProcess]) -> None:
    """Puts the workers into the table that routers get."""
    controller.add("m", spec_version=1)
    for name, worker in workers.items():
        controller.table.instances.append(
            control_pb2.RoutedInstance(
                instance_id=name,
                incarnation=7,
                model="m",
                address=worker.address,
                role=types_pb2.ROLE_MIXED,
                state=types_pb2.INSTANCE_STATE_READY,
                spec_version=1,
            )
        )


async def router_of(start_router: Callable[..., Awaitable[Any]], **settings: Any) -> Any:
    """A router that may send requests to all of them."""
    router = await start_router(retry_pause_s=0.05, **settings)
    await eventually(lambda: all(one.usable for one in router.core._instances.values()))
    return router


async def set_role(worker: WorkerProcess, role: types_pb2.Role.ValueType) -> None:
    """What the worker takes from now on."""
    await worker.control.SetWorkerRole(wpb.SetWorkerRoleRequest(role=role))


async def load_of(worker: WorkerProcess) -> cluster_pb2.InstanceLoad:
    """What the worker says of itself."""
    async for statistics in worker.control.WatchStatistics(wpb.WatchStatisticsRequest()):
        return statistics.load
    raise AssertionError("the statistics ended")


class Reading:
    """A stream that is read all the time."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.tokens: list[int] = []
        self.last: Any = None
        """The last message."""
        self.task = asyncio.create_task(self._read(client, options))
        """Ends with all tokens."""

    async def _read(self, client: Client, options: dict[str, Any]) -> list[int]:
        async for chunk in client.generate(**options):
            assert chunk.first_token_index == len(self.tokens)
            self.tokens += chunk.token_ids
            self.last = chunk
        return self.tokens
