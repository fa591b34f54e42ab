"""Nodes whose agents speak the controller's stream as real ones do, and run nothing: many in one process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc

from chiron.internal.v1 import control_pb2 as pb
from chiron.internal.v1 import control_pb2_grpc
from chiron.rpc.controllers import Controllers
from chiron.rpc.streams import ending, write
from chiron.v1 import cluster_pb2, types_pb2

_INTERVAL_S = 1.0
_Call = grpc.aio.StreamStreamCall[pb.ConnectAgentRequest, pb.ConnectAgentResponse]
Work = Callable[[cluster_pb2.InstanceStatus], None]
"""Brings an instance's figures up to date before each report."""


def _steady(status: cluster_pb2.InstanceStatus) -> None:
    # Something about every instance differs from second to second.
    status.load.tokens_per_s += 1.0


class SimulatedNode:
    """Brings whatever it is told to READY at once, and reports it every second."""

    def __init__(self, node_id: str, gpus: int, controllers: Sequence[str], work: Work | None = None) -> None:
        """Describes a node of `gpus` GPUs that dials these controllers; `work` None: steady figures."""
        self._work = work or _steady
        self.node_id = node_id
        self.term = 0
        """Highest one seen."""
        self.reported_at: dict[int, float] = {}
        """Term → monotonic time at which its leader was first sent a report."""
        self.running: dict[str, cluster_pb2.InstanceStatus] = {}
        self.stops = 0
        """Instances that it was told to stop."""
        self._gpus = [
            cluster_pb2.Gpu(index=index, uuid=f"declared-{index}", healthy=True) for index in range(gpus)
        ]
        self._controllers = Controllers(controllers)
        self._revision = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Connects, and again whenever the stream ends; runs until cancelled."""
        try:
            while True:
                try:
                    await self._session()
                    self._controllers.failed()
                except grpc.aio.AioRpcError as error:
                    self._controllers.failed(error)
                await self._controllers.pause()
        finally:
            await self._controllers.close()

    async def _session(self) -> None:
        call: _Call = control_pb2_grpc.ControlServiceStub(self._controllers.channel()).ConnectAgent()
        reading: asyncio.Task[None] | None = None
        waiting: asyncio.Task[bool] | None = None
        try:
            await write(call, pb.ConnectAgentRequest(hello=self._hello()))
            first = await call.read()
            if not isinstance(first, pb.ConnectAgentResponse) or not first.HasField("welcome"):
                raise await ending(call)
            if first.welcome.term < self.term:
                return
            self.term = first.welcome.term
            self._controllers.found()
            reading = asyncio.create_task(self._read(call))
            sequence = 0
            while not reading.done():
                sequence += 1
                self._changed.clear()
                await write(call, pb.ConnectAgentRequest(report=self._report(sequence)))
                self.reported_at.setdefault(self.term, time.monotonic())
                waiting = asyncio.create_task(self._changed.wait())
                await asyncio.wait(
                    {reading, waiting}, timeout=_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED
                )
                waiting.cancel()
            reading.result()
        finally:
            for task in (reading, waiting):
                if task is not None:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
            call.cancel()

    async def _read(self, call: _Call) -> None:
        while isinstance(message := await call.read(), pb.ConnectAgentResponse):
            if message.HasField("desired"):
                self._obey(message.desired)
                self._changed.set()

    def _obey(self, desired: pb.DesiredNode) -> None:
        self._revision = desired.revision
        wanted = {one.instance_id: one for one in desired.instances}
        for gone in self.running.keys() - wanted.keys():
            del self.running[gone]
        for one in wanted.values():
            status = self.running.get(one.instance_id)
            if one.state == pb.DESIRED_STATE_STOPPED:
                if status is not None and status.state != types_pb2.INSTANCE_STATE_STOPPED:
                    status.state = types_pb2.INSTANCE_STATE_STOPPED
                    self.stops += 1
                continue
            if status is None:
                status = self.running[one.instance_id] = self._started(one)
            status.generation = one.generation

    def _started(self, one: pb.DesiredInstance) -> cluster_pb2.InstanceStatus:
        load = cluster_pb2.InstanceLoad(
            batch_size=256,
            running=types_pb2.ClassCounts(interactive=40, batch=10),
            kv_usage=0.4,
            itl_mean_ms=21.0,
            itl_p95_ms=26.0,
            tokens_per_s=1900.0,
            kv_capacity_tokens=430_000,
        )
        return cluster_pb2.InstanceStatus(
            instance_id=one.instance_id,
            model=one.spec.name,
            node_id=self.node_id,
            gpu_indexes=one.gpu_indexes,
            role=one.role,
            state=types_pb2.INSTANCE_STATE_READY,
            incarnation=1,
            address=f"127.0.0.1:{1 + hash(one.instance_id) % 60_000}",
            spec_version=one.spec_version,
            load=load,
        )

    def _report(self, sequence: int) -> pb.AgentReport:
        for status in self.running.values():
            self._work(status)
        return pb.AgentReport(
            sequence=sequence,
            instances=[pb.InstanceReport(status=status, known=True) for status in self.running.values()],
            gpus=self._gpus,
            applied_revision=self._revision,
        )

    def _hello(self) -> pb.AgentHello:
        return pb.AgentHello(
            node_id=self.node_id,
            host="127.0.0.1",
            gpus=self._gpus,
            agent_version="simulated",
            highest_term=self.term,
            state_id=self.node_id,
        )


async def eventually(condition: Callable[[], bool], within_s: float, what: str) -> None:
    """Returns once the condition holds. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        await asyncio.sleep(0.01)
