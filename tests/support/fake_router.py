"""A router's stream to the controller: keeps the table as a router would, and serves nothing."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Any

import grpc

from chiron.internal.v1 import auth_pb2, control_pb2_grpc
from chiron.internal.v1 import control_pb2 as pb
from chiron.rpc.servers import open_channel
from chiron.rpc.streams import write


class FakeRouter:
    """Takes snapshots and deltas; a delta that does not follow is an assertion error."""

    def __init__(
        self,
        controller: str,
        *,
        router_id: str = "router",
        epoch: int = 0,
        reading: bool = True,
        held: auth_pb2.TicketKeys | None = None,
    ) -> None:
        """Prepares a router; `async with` connects it.

        Args:
            controller: host:port.
            router_id: its id.
            epoch: the epoch that it claims to hold.
            reading: read what comes at once; else only by `read`.
            held: ticket keys that it has already.
        """
        self.epoch = epoch
        self.models: dict[str, pb.RoutedModel] = {}
        self.instances: dict[str, pb.RoutedInstance] = {}
        self.snapshots = 0
        self.deltas = 0
        self.keys: list[auth_pb2.TicketKeys] = []
        """What tickets are to be signed with, the newest last."""
        self.error: BaseException | None = None
        self._held = held
        self._controller, self._router_id, self._reading = controller, router_id, reading
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FakeRouter:
        self._channel = open_channel(self._controller)
        self._call = control_pb2_grpc.ControlServiceStub(self._channel).ConnectRouter()  # type: ignore[call-arg]
        hello = pb.RouterHello(
            router_id=self._router_id, address="127.0.0.1:50051", epoch=self.epoch, keys=self._held
        )
        await write(self._call, pb.ConnectRouterRequest(hello=hello))
        if self._reading:
            self._task = asyncio.create_task(self._read_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def report(self, **queued: pb.ModelDemand) -> None:
        """Sends one report."""
        report = pb.RouterReport(sequence=1, interval_ms=1000, demand=list(queued.values()))
        await write(self._call, pb.ConnectRouterRequest(report=report))

    async def read(self) -> bool:
        """Takes one message; False at the end of the stream."""
        message = await self._call.read()
        if message is grpc.aio.EOF:
            return False
        if message.HasField("snapshot"):
            self.snapshots += 1
            self.epoch = message.snapshot.epoch
            self.models = {one.name: one for one in message.snapshot.models}
            self.instances = {one.instance_id: one for one in message.snapshot.instances}
            return True
        if message.HasField("keys"):
            self.keys.append(message.keys)
            return await self.read()
        delta = message.delta
        assert delta.epoch == self.epoch + 1, f"epoch {delta.epoch} after {self.epoch}"
        self.deltas += 1
        self.epoch = delta.epoch
        self.models |= {one.name: one for one in delta.models}
        self.instances |= {one.instance_id: one for one in delta.instances}
        for name in delta.removed_models:
            del self.models[name]
        for instance_id in delta.removed_instance_ids:
            del self.instances[instance_id]
        return True

    async def _read_all(self) -> None:
        try:
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await self.read():
                    pass
        except AssertionError as error:
            self.error = error
