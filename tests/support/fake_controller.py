"""A controller that does what a test says: takes an agent's stream, keeps its reports, sends levels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

import grpc

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import control_pb2, control_pb2_grpc
from chiron.rpc.servers import Server
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.wait import eventually


class FakeController(control_pb2_grpc.ControlServiceServicer):
    """Speaks with one agent at a time; everything that it was told is public."""

    def __init__(self, term: int = 1, *, report_interval_ms: int = 200) -> None:
        self.term = term
        self.report_interval_ms = report_interval_ms
        self.hellos: list[control_pb2.AgentHello] = []
        self.reports: list[control_pb2.AgentReport] = []
        """Of the newest stream."""
        self.history: dict[str, list[types_pb2.InstanceState.ValueType]] = {}
        """Instance → states in the order reported, repetitions left out."""
        self.reasons: dict[str, set[str]] = {}
        self.connected = False
        self.desired = control_pb2.DesiredNode()
        self._outbox: asyncio.Queue[control_pb2.ConnectAgentResponse] = asyncio.Queue()
        self._server: Server | None = None
        self.port = 0

    async def start(self, port: int = 0) -> None:
        self._server = Server(["chiron.internal.v1.ControlService"])
        control_pb2_grpc.add_ControlServiceServicer_to_server(self, self._server.grpc)
        self.port = self._server.bind(f"127.0.0.1:{port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    async def ConnectAgent(
        self,
        request_iterator: AsyncIterator[control_pb2.ConnectAgentRequest],
        context: grpc.aio.ServicerContext[control_pb2.ConnectAgentRequest, control_pb2.ConnectAgentResponse],
    ) -> AsyncIterator[control_pb2.ConnectAgentResponse]:
        first = await anext(request_iterator)
        self.hellos.append(first.hello)
        self.reports = []
        self._outbox = asyncio.Queue()
        receiving = asyncio.create_task(self._receive(request_iterator))
        try:
            yield control_pb2.ConnectAgentResponse(
                welcome=control_pb2.AgentWelcome(
                    term=self.term, report_interval_ms=self.report_interval_ms, liveness_timeout_ms=5000
                )
            )
            self.connected = True
            while True:
                sending = asyncio.create_task(self._outbox.get())
                done, _ = await asyncio.wait({receiving, sending}, return_when=asyncio.FIRST_COMPLETED)
                if sending not in done:
                    sending.cancel()
                    return
                yield sending.result()
        finally:
            self.connected = False
            receiving.cancel()

    async def _receive(self, requests: AsyncIterator[control_pb2.ConnectAgentRequest]) -> None:
        async for request in requests:
            self.reports.append(request.report)
            for report in request.report.instances:
                states = self.history.setdefault(report.status.instance_id, [])
                self.reasons.setdefault(report.status.instance_id, set()).add(report.status.reason)
                if not states or states[-1] != report.status.state:
                    states.append(report.status.state)

    def send(
        self,
        instances: Iterable[control_pb2.DesiredInstance],
        *,
        term: int = 0,
        revision: int = 0,
        gpu_orders: Iterable[control_pb2.GpuOrder] = (),
    ) -> None:
        """Sends a level; by default of its own term and the next revision."""
        self.desired = control_pb2.DesiredNode(
            term=term or self.term,
            revision=revision or self.desired.revision + 1,
            instances=list(instances),
            gpu_orders=list(gpu_orders),
        )
        self._outbox.put_nowait(control_pb2.ConnectAgentResponse(desired=self.desired))

    def send_keys(self, ring: KeyRing) -> None:
        """Sends keys of tickets."""
        self._outbox.put_nowait(control_pb2.ConnectAgentResponse(keys=ring.to_message()))

    def instance(self, instance_id: str) -> control_pb2.InstanceReport | None:
        """The newest report of an instance."""
        for report in self.reports[-1].instances if self.reports else ():
            if report.status.instance_id == instance_id:
                return report
        return None

    async def until_connected(self) -> None:
        await eventually(lambda: self.connected and self.reports, what="the agent connects and reports")

    async def until_reason(self, instance_id: str, text: str) -> None:
        """Returns once the instance has been reported with a reason that holds the text."""
        await eventually(
            lambda: any(text in reason for reason in self.reasons.get(instance_id, ())),
            what=f"{instance_id} is reported with {text!r}",
        )

    async def until(
        self, instance_id: str, state: types_pb2.InstanceState.ValueType, *, within_s: float = 20.0
    ) -> cluster_pb2.InstanceStatus:
        """The status once the instance is reported in this state."""

        def reached() -> cluster_pb2.InstanceStatus | None:
            report = self.instance(instance_id)
            return report.status if report is not None and report.status.state == state else None

        name = types_pb2.InstanceState.Name(state)
        try:
            found = await eventually(reached, within_s=within_s, what=f"{instance_id} is {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}; last report: {self.instance(instance_id)}") from None
        assert found is not None
        return found
