"""The agent's stream to the controller: hello and reports up; welcome and desired state down."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from importlib import metadata
from typing import NoReturn

import grpc

from chiron.auth.keys import KeyRing, KeyRingError
from chiron.internal.v1 import auth_pb2, control_pb2, control_pb2_grpc
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.controllers import Controllers
from chiron.rpc.identity import present
from chiron.rpc.streams import end_writing, write
from services.local_agent.node import Node
from services.local_agent.terms import StaleTerm

_LOG = logging.getLogger(__name__)
_COALESCE_S = 0.02
_WELCOME_TIMEOUT_S = 10.0
_LAST_REPORT_TIMEOUT_S = 2.0
_DEFAULT_INTERVAL_MS = 1000

Call = grpc.aio.StreamStreamCall[control_pb2.ConnectAgentRequest, control_pb2.ConnectAgentResponse]


class LostError(Exception):
    """The stream ended or spoke out of turn; the text says how."""


class ControllerLink:
    """Keeps one stream to the controller; workers run on whether it is there or not."""

    def __init__(self, controllers: Controllers, node: Node, changed: asyncio.Event) -> None:
        """Connects in `run`.

        Args:
            controllers: which one to dial; closed by `run`.
            node: what is reported, and who takes up desired state.
            changed: set by the node when a report must not wait for its interval.
        """
        self._controllers = controllers
        self._node = node
        self._changed = changed
        self._closing = False
        self._complaint = ""
        self._run_id = secrets.token_hex(8)

    async def run(self) -> None:
        """Connects, and again after each loss; returns after `finish` has sent the last report."""
        try:
            while not self._closing:
                lost: Exception | None = None
                try:
                    stub = control_pb2_grpc.ControlServiceStub(self._controllers.channel())
                    await self._guarded(self._session(stub))
                except (grpc.aio.AioRpcError, StaleTerm, LostError) as error:
                    lost = error
                    self._complain(error)
                self._controllers.failed(lost)
                if not self._closing:
                    await self._controllers.pause()
        finally:
            await self._controllers.close()

    def finish(self) -> None:
        """Sends one more report, where the controller is there, and ends `run`."""
        self._closing = True
        self._changed.set()

    async def _guarded(self, session: Coroutine[None, None, None]) -> None:
        """Turns gRPC's ways to say that a stream is over, which look like other things, into LostError."""
        try:
            await asyncio.create_task(session)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise LostError("the stream was cancelled") from None

    async def _session(self, stub: control_pb2_grpc.ControlServiceStub) -> None:
        call: Call = stub.ConnectAgent(metadata=bearer_metadata(present().api_key))
        try:
            await write(call, control_pb2.ConnectAgentRequest(hello=self._hello()))
            interval_s = await self._welcomed(call)
            receiving = asyncio.create_task(self._receive(call))
            sending = asyncio.create_task(self._send(call, interval_s))
            try:
                await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    receiving.result()
                sending.result()
                # The controller has the last report once it has answered the end of the stream.
                await asyncio.wait({receiving}, timeout=_LAST_REPORT_TIMEOUT_S)
            finally:
                receiving.cancel()
                sending.cancel()
                await asyncio.gather(receiving, sending, return_exceptions=True)
        finally:
            call.cancel()

    async def _welcomed(self, call: Call) -> float:
        """The report interval, in seconds."""
        try:
            first = await asyncio.wait_for(call.read(), _WELCOME_TIMEOUT_S)
        except TimeoutError:
            raise LostError(f"no welcome within {_WELCOME_TIMEOUT_S:g} s") from None
        if isinstance(first, control_pb2.ConnectAgentResponse) and first.HasField("welcome"):
            await self._node.accept_term(first.welcome.term)
            self._controllers.found()
            self._complaint = ""
            _LOG.info("connected to controller %s, term %d", self._controllers.address, first.welcome.term)
            return (first.welcome.report_interval_ms or _DEFAULT_INTERVAL_MS) / 1000
        raise LostError(await _ending(call) or "the first message was no welcome")

    async def _receive(self, call: Call) -> NoReturn:
        while True:
            message = await call.read()
            if not isinstance(message, control_pb2.ConnectAgentResponse):
                raise LostError(await _ending(call) or "the stream ended")
            if message.HasField("desired"):
                await self._node.apply(message.desired)
            elif message.HasField("keys"):
                self._take_keys(message.keys)
            elif message.HasField("hand_overs"):
                self._node.hand_over(message.hand_overs)

    def _take_keys(self, keys: auth_pb2.TicketKeys) -> None:
        try:
            self._node.ticket_keys.set(KeyRing.from_message(keys))
        except KeyRingError as error:
            _LOG.error("the controller sent ticket keys that cannot be used: %s", error)

    async def _send(self, call: Call, interval_s: float) -> None:
        sequence = 0
        while True:
            closing = self._closing
            self._changed.clear()
            sequence += 1
            report = control_pb2.AgentReport(
                sequence=sequence,
                instances=self._node.reports(),
                gpus=self._node.gpus(),
                applied_revision=self._node.applied_revision,
                leaving=self._node.leaving,
                problems=self._node.problems,
                sleep_host_bytes=self._node.sleep_host_bytes,
            )
            await write(call, control_pb2.ConnectAgentRequest(report=report))
            if closing:
                await end_writing(call)
                return
            if await self._changed_within(interval_s):
                await asyncio.sleep(_COALESCE_S)

    async def _changed_within(self, interval_s: float) -> bool:
        try:
            await asyncio.wait_for(self._changed.wait(), interval_s)
        except TimeoutError:
            return False
        return True

    def _hello(self) -> control_pb2.AgentHello:
        ring = self._node.ticket_keys.ring
        return control_pb2.AgentHello(
            node_id=self._node.node_id,
            host=self._node.host,
            gpus=self._node.gpus(),
            agent_version=metadata.version("chiron-serving"),
            highest_term=self._node.highest_term,
            state_id=self._node.state_id,
            run_id=self._run_id,
            keys=ring.to_message() if ring is not None else None,
        )

    def _complain(self, error: Exception) -> None:
        """Logs a loss once, not at every try that ends the same way."""
        text = str(error.details() if isinstance(error, grpc.aio.AioRpcError) else error)
        if text != self._complaint:
            _LOG.warning("controller %s: %s; trying again, workers run on", self._controllers.address, text)
            self._complaint = text


async def _ending(call: Call) -> str:
    """The status text of a stream that has ended; empty for a plain end or one that goes on."""
    return str(await call.details() or "") if call.done() else ""
