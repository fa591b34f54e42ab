"""An agent that speaks the controller's stream and runs nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from chiron.internal.v1 import auth_pb2, control_pb2_grpc
from chiron.internal.v1 import control_pb2 as pb
from chiron.rpc.servers import open_channel
from chiron.rpc.streams import write
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.wait import eventually

READY = types_pb2.INSTANCE_STATE_READY
STOPPED = types_pb2.INSTANCE_STATE_STOPPED


class FakeAgent:
    """One node's stream. With `obey` it reports what it is told as done at once."""

    def __init__(
        self,
        controller: str,
        node_id: str,
        *,
        gpus: int = 2,
        obey: bool = True,
        state: types_pb2.InstanceState.ValueType = READY,
        reason: str = "",
        highest_term: int = 0,
        state_id: str = "",
        run_id: str = "",
        interval_s: float = 0.1,
        held: auth_pb2.TicketKeys | None = None,
    ) -> None:
        """Prepares an agent; `async with` connects it.

        Args:
            controller: host:port.
            node_id: its node.
            gpus: how many the node has.
            obey: bring each wanted instance to `state`, and stop what is to stop.
            state: where wanted instances go.
            reason: reported with that state.
            highest_term: as in AgentHello.
            state_id: as in AgentHello; empty: the same for all agents of this node id.
            run_id: as in AgentHello.
            interval_s: time between reports; 0: only on a change.
            held: ticket keys that it has already.
        """
        self.node_id = node_id
        self.state_id = state_id or f"state of {node_id}"
        self.run_id = run_id
        self.gpus = [
            cluster_pb2.Gpu(index=index, uuid=f"declared-{index}", healthy=True) for index in range(gpus)
        ]
        self.problems: list[str] = []
        self.statuses: dict[str, cluster_pb2.InstanceStatus] = {}
        self.welcome = pb.AgentWelcome()
        self.levels: list[pb.DesiredNode] = []
        self.keys: list[auth_pb2.TicketKeys] = []
        """What workers are to check tickets with, the newest last."""
        self.known: set[str] = set()
        self.obey, self.state, self.reason = obey, state, reason
        self.leaving = False
        """As in AgentReport."""
        self._highest_term, self._interval_s = highest_term, interval_s
        self._controller = controller
        self._held = held
        self._sequence = 0
        self._writing = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> FakeAgent:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect()

    async def connect(self) -> None:
        """Opens the stream, takes the welcome and sends a first report."""
        self._channel = open_channel(self._controller)
        self._sequence = 0
        self.levels = []
        self._call = control_pb2_grpc.ControlServiceStub(self._channel).ConnectAgent()  # type: ignore[call-arg]
        hello = pb.AgentHello(
            node_id=self.node_id,
            host="127.0.0.1",
            gpus=self.gpus,
            agent_version="fake",
            highest_term=self._highest_term,
            state_id=self.state_id,
            run_id=self.run_id,
            keys=self._held,
        )
        await write(self._call, pb.ConnectAgentRequest(hello=hello))
        first = await self._call.read()
        self.welcome = first.welcome
        self._tasks = [asyncio.create_task(self._read())]
        await self.report()
        if self._interval_s:
            self._tasks.append(asyncio.create_task(self._report_regularly()))

    async def disconnect(self) -> None:
        """Breaks the stream off, as a crash does."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def report(self) -> None:
        """Sends everything it knows."""
        async with self._writing:
            self._sequence += 1
            report = pb.AgentReport(
                sequence=self._sequence,
                instances=[
                    pb.InstanceReport(status=status, known=status.instance_id in self.known)
                    for status in self.statuses.values()
                ],
                gpus=self.gpus,
                problems=self.problems,
                applied_revision=self.levels[-1].revision if self.levels else 0,
                leaving=self.leaving,
            )
            await write(self._call, pb.ConnectAgentRequest(report=report))

    def run(self, instance_id: str, model: str, *gpu_indexes: int, spec_version: int = 1) -> None:
        """Pretends that an instance runs already."""
        self.statuses[instance_id] = cluster_pb2.InstanceStatus(
            instance_id=instance_id,
            model=model,
            node_id=self.node_id,
            gpu_indexes=gpu_indexes,
            role=types_pb2.ROLE_MIXED,
            state=READY,
            incarnation=1,
            address=f"127.0.0.1:{50100 + len(self.statuses)}",
            spec_version=spec_version,
        )

    def wanted(self, state: pb.DesiredState.ValueType = pb.DESIRED_STATE_RUNNING) -> list[pb.DesiredInstance]:
        """The instances of the newest level that are wanted in `state`."""
        return [one for one in self.levels[-1].instances if one.state == state] if self.levels else []

    async def until(self, condition: Callable[[FakeAgent], object], what: str = "") -> None:
        """Waits for a condition on this agent."""
        await eventually(lambda: condition(self), what=what)

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (message := await self._call.read()) is not grpc.aio.EOF:
                if message.HasField("keys"):
                    self.keys.append(message.keys)
                    continue
                self.levels.append(message.desired)
                self.known = {one.instance_id for one in message.desired.instances}
                if self.obey:
                    self._carry_out(message.desired)
                    await self.report()

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.report()

    def _carry_out(self, level: pb.DesiredNode) -> None:
        for one in level.instances:
            if one.state == pb.DESIRED_STATE_STOPPED:
                if one.instance_id in self.statuses:
                    self.statuses[one.instance_id].state = STOPPED
            elif one.instance_id not in self.statuses:
                self.run(one.instance_id, one.spec.name, *one.gpu_indexes, spec_version=one.spec_version)
                self.statuses[one.instance_id].state = self.state
                self.statuses[one.instance_id].reason = self.reason
            if one.instance_id in self.statuses:
                self.statuses[one.instance_id].generation = one.generation
                self.statuses[one.instance_id].role = one.role
        for instance_id in set(self.statuses) - self.known:
            if self.statuses[instance_id].state == STOPPED:
                del self.statuses[instance_id]
