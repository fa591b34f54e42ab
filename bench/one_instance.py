"""A controller that knows one model on one instance: what a benchmark of a router needs of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from bench.paced_worker import INCARNATION, INSTANCE_ID
from chiron.internal.v1 import control_pb2
from chiron.rpc.servers import Server
from chiron.v1 import cluster_pb2, types_pb2


class OneInstanceController:
    """Hands every router a table with one model on one instance."""

    def __init__(self, worker: str) -> None:
        self._table = control_pb2.RoutingTable(
            epoch=1,
            term=1,
            models=[control_pb2.RoutedModel(name="bench", spec_version=1)],
            instances=[
                control_pb2.RoutedInstance(
                    instance_id=INSTANCE_ID,
                    incarnation=INCARNATION,
                    model="bench",
                    address=worker,
                    role=types_pb2.ROLE_MIXED,
                    state=types_pb2.INSTANCE_STATE_READY,
                    spec_version=1,
                    load=cluster_pb2.InstanceLoad(batch_size=100_000),
                )
            ],
        )

    async def connect_router(
        self, request_iterator: AsyncIterator[control_pb2.ConnectRouterRequest], context: Any
    ) -> AsyncIterator[control_pb2.ConnectRouterResponse]:
        """Sends the table and keeps the stream."""
        yield control_pb2.ConnectRouterResponse(snapshot=self._table)
        async for _ in request_iterator:
            pass


@contextlib.asynccontextmanager
async def controller_of(worker: str) -> AsyncIterator[str]:
    """Address of a controller that knows one model on one instance."""
    control = Server(["chiron.internal.v1.ControlService"])
    connect = grpc.stream_stream_rpc_method_handler(
        OneInstanceController(worker).connect_router,
        control_pb2.ConnectRouterRequest.FromString,
        control_pb2.ConnectRouterResponse.SerializeToString,
    )
    handler = grpc.method_handlers_generic_handler(
        "chiron.internal.v1.ControlService", {"ConnectRouter": connect}
    )
    control.grpc.add_generic_rpc_handlers((handler,))
    port = control.bind("127.0.0.1:0")
    await control.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await control.stop(0)
