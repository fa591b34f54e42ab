"""A controller whose routing table the test writes; it records what routers report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from chiron.internal.v1 import control_pb2, control_pb2_grpc
from chiron.rpc.servers import Server
from chiron.v1 import types_pb2
from tests.support.fake_worker import FakeWorker


class FakeRouterController(control_pb2_grpc.ControlServiceServicer):
    """Serves ConnectRouter: a snapshot of `table` first, then what `send` is given."""

    def __init__(self, *, term: int = 1) -> None:
        self.table = control_pb2.RoutingTable(epoch=1, term=term)
        self.hellos: asyncio.Queue[control_pb2.RouterHello] = asyncio.Queue()
        self.reports: asyncio.Queue[control_pb2.RouterReport] = asyncio.Queue()
        self.calls: asyncio.Queue[control_pb2.RouterCall] = asyncio.Queue()
        self.address = ""
        self._streams: set[asyncio.Queue[control_pb2.ConnectRouterResponse | None]] = set()

    async def start(self, address: str = "127.0.0.1:0") -> FakeRouterController:
        """Listens; `address` says where."""
        self._server = Server(["chiron.internal.v1.ControlService"])
        control_pb2_grpc.add_ControlServiceServicer_to_server(self, self._server.grpc)
        self.address = f"127.0.0.1:{self._server.bind(address)}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        """Goes away at once."""
        await self._server.grpc.stop(None)

    def add(self, model: str, workers: Iterable[FakeWorker] = (), **fields: object) -> None:
        """Puts a model and its workers into the table for those who connect from now on."""
        routed = control_pb2.RoutedModel(name=model, **fields)  # type: ignore[arg-type]
        self.table.models.append(routed)
        self.table.instances.extend(routed_instance(model, worker) for worker in workers)

    def send(self, **changes: object) -> control_pb2.RoutingDelta:
        """Sends a delta that follows the table's epoch to everyone connected."""
        self.table.epoch += 1
        delta = control_pb2.RoutingDelta(epoch=self.table.epoch, **changes)  # type: ignore[arg-type]
        for stream in self._streams:
            stream.put_nowait(control_pb2.ConnectRouterResponse(delta=delta))
        return delta

    def skip_epoch(self) -> None:
        """Loses one delta on the way."""
        self.table.epoch += 1

    async def ConnectRouter(
        self, requests: AsyncIterator[control_pb2.ConnectRouterRequest], context: object
    ) -> AsyncIterator[control_pb2.ConnectRouterResponse]:
        hello = await anext(requests)
        self.hellos.put_nowait(hello.hello)
        stream: asyncio.Queue[control_pb2.ConnectRouterResponse | None] = asyncio.Queue()
        self._streams.add(stream)
        reader = asyncio.create_task(self._read(requests))
        try:
            yield control_pb2.ConnectRouterResponse(snapshot=self.table)
            while (answer := await stream.get()) is not None:
                yield answer
        finally:
            self._streams.discard(stream)
            reader.cancel()

    async def _read(self, requests: AsyncIterator[control_pb2.ConnectRouterRequest]) -> None:
        async for request in requests:
            if request.HasField("call"):
                self.calls.put_nowait(request.call)
            else:
                self.reports.put_nowait(request.report)


def routed_instance(model: str, worker: FakeWorker) -> control_pb2.RoutedInstance:
    """A worker as the routing table lists it."""
    return control_pb2.RoutedInstance(
        instance_id=worker.instance_id,
        incarnation=worker.load.incarnation,
        model=model,
        address=worker.address,
        role=worker.load.role,
        state=types_pb2.INSTANCE_STATE_READY,
    )
