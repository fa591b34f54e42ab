"""A controller served over loopback, in this process, with short times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest

from chiron.internal.v1 import control_pb2_grpc
from chiron.rpc.servers import Server, open_channel
from chiron.store import MemoryStore
from chiron.v1 import cluster_pb2, cluster_pb2_grpc
from services.global_controller.app import SERVICES
from services.global_controller.autoscaler_config import AutoscalerConfig
from services.global_controller.config import ControllerConfig
from services.global_controller.control_servicer import ControlServicer
from services.global_controller.controller import Controller
from services.global_controller.gate import Gate
from services.global_controller.seat import Seat
from services.global_controller.servicer import ClusterServicer
from services.global_controller.store_health import StoreHealth
from tests.support.fake_agent import FakeAgent

TIMEOUT_S = 1.0


@dataclass
class Served:
    """A controller and a client's view of it."""

    address: str
    controller: Controller
    cluster: cluster_pb2_grpc.ClusterServiceStub
    control: control_pb2_grpc.ControlServiceStub
    stack: AsyncExitStack

    async def agent(self, node_id: str, **options: object) -> FakeAgent:
        return await self.stack.enter_async_context(FakeAgent(self.address, node_id, **options))  # type: ignore[arg-type]

    async def snapshot(self) -> cluster_pb2.ClusterSnapshot:
        return (await self.cluster.GetSnapshot(cluster_pb2.GetSnapshotRequest())).snapshot

    async def apply(self, **fields: object) -> cluster_pb2.ApplyModelResponse:
        spec = cluster_pb2.ModelSpec(**{"gpus_per_instance": 1, "engine": "sim"} | fields)  # type: ignore[arg-type]
        return await self.cluster.ApplyModel(cluster_pb2.ApplyModelRequest(spec=spec))

    async def decisions(self, action: str) -> list[cluster_pb2.Decision]:
        answer = await self.cluster.ListDecisions(cluster_pb2.ListDecisionsRequest())
        return [one for one in answer.decisions if one.action == action]


@asynccontextmanager
async def serving(
    timeout_s: float = TIMEOUT_S, *, autoscaler: AutoscalerConfig | None = None, load_time_s: float = 30.0
) -> AsyncIterator[Served]:
    config = ControllerConfig(
        listen="127.0.0.1:0",
        report_interval_ms=100,
        liveness_timeout_s=timeout_s,
        decisions_kept=200,
        roll_hold_s=0.1,
        drain_notice_s=0.3,
        presumed_load_time_s=load_time_s,
        autoscaler=autoscaler or AutoscalerConfig(),
    )
    store = MemoryStore(decisions_kept=200)
    controller = Controller(config, store)
    seat = Seat("127.0.0.1:0", StoreHealth("memory", time.monotonic))
    seat.take(controller)
    server = Server(SERVICES, interceptors=[Gate(seat, SERVICES)])
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterServicer(seat), server.grpc)
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlServicer(seat), server.grpc)
    port = server.bind("127.0.0.1:0")
    await controller.start()
    running = asyncio.create_task(controller.run())
    await server.start()
    channel: grpc.aio.Channel = open_channel(f"127.0.0.1:{port}")
    try:
        async with AsyncExitStack() as stack:
            yield Served(
                f"127.0.0.1:{port}",
                controller,
                cluster_pb2_grpc.ClusterServiceStub(channel),
                control_pb2_grpc.ControlServiceStub(channel),
                stack,
            )
        assert not running.done(), "the controller's loop ended"
    finally:
        await channel.close()
        controller.close()
        await server.stop(1.0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await store.close()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as one:
        yield one
