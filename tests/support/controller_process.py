"""Controllers as real processes, several of which share an etcd."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.cluster import ClusterAdmin
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2, cluster_pb2_grpc
from tests.support.wait import eventually

ROOT = Path(__file__).resolve().parents[2]
LEADER_HEALTH = "chiron.leader"


class ControllerProcess:
    """One controller; `start` again after its end gives it the same address."""

    def __init__(self, name: str, log: Path, settings: Sequence[str]) -> None:
        self.name = name
        self.log = log
        self.address = ""
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._channel: grpc.aio.Channel | None = None

    async def start(self) -> None:
        """Returns when it serves."""
        chosen = [f"listen={self.address or '127.0.0.1:0'}", *self._settings]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.global_controller",
                *(argument for setting in chosen for argument in ("--set", setting)),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, self.log.read_text()
        self.address = json.loads(line)["address"]
        self._channel = open_channel(self.address)

    @property
    def cluster(self) -> cluster_pb2_grpc.ClusterServiceStub:
        """Its ClusterService, whether it leads or not."""
        assert self._channel is not None
        return cluster_pb2_grpc.ClusterServiceStub(self._channel)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """False once it has ended."""
        return self._process is not None and self._process.returncode is None

    async def wait(self) -> int:
        """Its exit status."""
        assert self._process is not None
        return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        if self._process is not None:
            await self._process.communicate()
        if self._channel is not None:
            await self._channel.close()
        self._process = self._channel = None

    async def leads(self) -> bool:
        """What its health service says."""
        if not self.running or self._channel is None:
            return False
        request = health_pb2.HealthCheckRequest(service=LEADER_HEALTH)
        try:
            answer = await health_pb2_grpc.HealthStub(self._channel).Check(request, timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


class Controllers:
    """Several processes, one of which leads."""

    def __init__(self, processes: Sequence[ControllerProcess]) -> None:
        self.processes = processes

    @property
    def addresses(self) -> list[str]:
        """host:port of each."""
        return [one.address for one in self.processes]

    def admin(self, **options: float) -> ClusterAdmin:
        """The operator's calls to whoever leads."""
        return ClusterAdmin(self.addresses, **options)

    async def leader(self, *, besides: ControllerProcess | None = None) -> ControllerProcess:
        """The one that leads, as soon as one does."""
        found: list[ControllerProcess] = []

        async def some() -> bool:
            found[:] = [one for one in self.processes if one is not besides and await one.leads()]
            return bool(found)

        await eventually(some, within_s=40.0, what="a leader")
        return found[0]

    def others(self, leader: ControllerProcess) -> list[ControllerProcess]:
        """All but this one."""
        return [one for one in self.processes if one is not leader]


@asynccontextmanager
async def controllers(
    folder: Path, endpoints: Sequence[str], *settings: str, count: int = 3, lease_s: int = 2
) -> AsyncIterator[Controllers]:
    """Starts `count` controllers on one etcd and ends them."""
    chosen = (
        "report_interval_ms=100",
        "liveness_timeout_s=2",
        "store.kind=etcd",
        f"store.endpoints={','.join(endpoints)}",
        f"store.lease_s={lease_s}",
        *settings,
    )
    processes = [ControllerProcess(f"c{i}", folder / f"controller-{i}.log", chosen) for i in range(count)]
    async with AsyncExitStack() as stack:
        for one in processes:
            stack.push_async_callback(one.kill)
        await asyncio.gather(*(one.start() for one in processes))
        yield Controllers(processes)


def spec(name: str = "chat", instances: int = 1, **fields: object) -> cluster_pb2.ModelSpec:
    """A model of the sim engine."""
    return cluster_pb2.ModelSpec(
        name=name,
        gpus_per_instance=1,
        engine="sim",
        min_instances=instances,
        **fields,  # type: ignore[arg-type]
    )
