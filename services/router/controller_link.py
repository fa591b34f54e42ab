"""The stream to the global controller: tables down, demand up. Without it the router serves on."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc

from chiron.auth.keys import KeyRing, KeyRingError
from chiron.internal.v1 import auth_pb2, control_pb2, control_pb2_grpc
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.controllers import Controllers
from chiron.rpc.identity import present
from chiron.rpc.streams import write
from services.router.placer import Placer
from services.router.table import EpochGapError, StaleTermError

log = logging.getLogger(__name__)

_Stream = grpc.aio.StreamStreamCall[control_pb2.ConnectRouterRequest, control_pb2.ConnectRouterResponse]


class ControllerLink:
    """Keeps the table fresh and the controller informed."""

    def __init__(
        self,
        controllers: Controllers,
        router_id: str,
        address: str,
        report_interval_s: float,
        placer: Placer,
    ) -> None:
        self._controllers = controllers
        self._hello = control_pb2.RouterHello(router_id=router_id, address=address)
        self._report_interval_s = report_interval_s
        self._placer = placer
        self._complaint = ""

    async def run(self) -> None:
        """Connects, and connects again after a jittered pause; runs until cancelled."""
        try:
            while True:
                try:
                    await self._session(control_pb2_grpc.ControlServiceStub(self._controllers.channel()))
                    self._complain("it ended the stream")
                    self._controllers.failed()
                except EpochGapError as gap:
                    log.warning("asking for a new table: %s", gap)
                    self._controllers.again()
                except StaleTermError as stale:
                    self._complain(f"refused its table: {stale}")
                    self._controllers.failed()
                except grpc.aio.AioRpcError as error:
                    self._complain(str(error.details()))
                    self._controllers.failed(error)
                await self._controllers.pause()
        finally:
            await self._controllers.close()

    def _complain(self, cause: str) -> None:
        """Logs a loss once, not at every try that ends the same way."""
        if cause != self._complaint:
            self._complaint = cause
            log.warning("controller %s: %s; serving on the last table", self._controllers.address, cause)

    async def _session(self, stub: control_pb2_grpc.ControlServiceStub) -> None:
        call = stub.ConnectRouter(metadata=bearer_metadata(present().api_key))
        reporter: asyncio.Task[None] | None = None
        try:
            hello = control_pb2.RouterHello()
            hello.CopyFrom(self._hello)
            hello.epoch = self._placer.epoch
            if self._placer.tickets.ring is not None:
                hello.keys.CopyFrom(self._placer.tickets.ring.to_message())
            await write(call, control_pb2.ConnectRouterRequest(hello=hello))
            reporter = asyncio.create_task(self._report(call))
            async for answer in call:
                self._take(answer)
        finally:
            self._placer.controller_lost()
            if reporter is not None:
                reporter.cancel()
                await asyncio.gather(reporter, return_exceptions=True)
            call.cancel()

    def _take(self, answer: control_pb2.ConnectRouterResponse) -> None:
        match answer.WhichOneof("message"):
            case "snapshot":
                self._placer.snapshot(answer.snapshot)
                log.info(
                    "table of term %d, epoch %d: %d models, %d instances",
                    answer.snapshot.term,
                    answer.snapshot.epoch,
                    len(answer.snapshot.models),
                    len(answer.snapshot.instances),
                )
            case "delta":
                self._placer.delta(answer.delta)
            case "keys":
                self._take_keys(answer.keys)
            case _:
                log.warning("the controller sent a message that this router does not know")
        self._controllers.found()
        self._complaint = ""

    def _take_keys(self, keys: auth_pb2.TicketKeys) -> None:
        try:
            self._placer.tickets.set_keys(KeyRing.from_message(keys))
            self._placer.on_table()
        except KeyRingError as error:
            log.error("the controller sent ticket keys that cannot be used: %s", error)

    async def _report(self, call: _Stream) -> None:
        sequence = 0
        time = asyncio.get_running_loop().time
        due = time() + self._report_interval_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._placer.calls.any.wait()
            if self._placer.calls.any.is_set() and time() < due:
                await write(call, control_pb2.ConnectRouterRequest(call=self._placer.call()))
                continue
            due = time() + self._report_interval_s
            sequence += 1
            report = self._placer.report(sequence)
            try:
                await write(call, control_pb2.ConnectRouterRequest(report=report))
            except BaseException:
                # However the stream ends, what was counted is told on the next one.
                self._placer.demand.take_back(report)
                raise
