"""A whole cluster of real processes, with a link on every way that a fault can strike."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from chiron.cluster.admin import ClusterAdmin
from chiron.store.etcd.methods import STATUS
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import cluster_pb2_grpc
from tests.soak.doors import doors, free_range, node_host
from tests.soak.engine import GPUS, NODE
from tests.soak.gpus import Process, Processes
from tests.soak.links import Link
from tests.soak.reaper import kill_all
from tests.soak.schedule import Shape
from tests.soak.services import Program, PythonService, Service
from tests.soak.versions import Versions
from tests.support.etcd_server import binary, free_ports

ENGINE = "tests.soak.engine:CoredEngine"
ENGINE_ARGS: Mapping[str, Any] = {"profile": "toy", "time_scale": 10}
"""20 ms a step: long answers last for seconds, so that faults strike streams."""
GPUS_PER_NODE = 2
_PORTS_PER_NODE = 8
"""For its workers: those that run, and those that are about to have ended."""
PREFIX = "/soak"
_MARK = "CHIRON_SOAK_RUN"
_HOST = "127.0.0.1"
_STOP_S = 60.0
_BATCH_SIZE = 16
_HOLD_S = 1.0
"""Time for which an instance of a new version must stay ready."""


class SoakCluster:
    """Starts everything on entry and leaves nothing on exit."""

    def __init__(self, shape: Shape, folder: Path, log: Callable[[str], None]) -> None:
        """`folder` takes the logs and all state."""
        self.shape = shape
        self.folder = folder
        self.versions = Versions(
            {f"model-{index}": dict(ENGINE_ARGS, seed=index) for index in range(shape.models)}
        )
        self.links: dict[str, Link] = {}
        """router-0, controller-0, etcd-0, peer-0, …, and worker-PORT for each port that workers may get."""
        self.services: dict[str, Service] = {}
        """router-0, controller-0, etcd-0, node-0, …"""
        self.mark = f"{_MARK}={uuid.uuid4().hex}"
        self.processes = Processes(self.mark)
        self._log = log
        self._stack = AsyncExitStack()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._channels: list[grpc.aio.Channel] = []

    @property
    def routers(self) -> list[str]:
        """Where clients find the routers."""
        return self._addresses("router")

    @property
    def controllers(self) -> list[str]:
        """Where operators find the controllers."""
        return self._addresses("controller")

    @property
    def width(self) -> int:
        """Requests of one model that run at once."""
        return self.shape.replicas * _BATCH_SIZE

    @property
    def gpu_folder(self) -> Path:
        """Where engines lock their GPUs."""
        return self.folder / "gpus"

    @property
    def journals(self) -> list[Path]:
        """The agents' journals."""
        return [self.folder / f"node-{index}" / "journal" for index in range(self.shape.agents)]

    @property
    def etcd_endpoints(self) -> list[str]:
        """The members' own addresses, past every link."""
        return [self.links[f"etcd-{index}"].target for index in range(self.shape.etcd)]

    async def __aenter__(self) -> SoakCluster:
        try:
            await self._enter()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for channel in self._channels:
                await channel.close()
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
        finally:
            kill_all(self.mark)
            await self._stack.aclose()

    async def drain(self) -> None:
        """Stops agents, routers and controllers, in this order, and ends etcd. Raises TimeoutError."""
        for prefix in ("node", "router", "controller"):
            group = [service for name, service in self.services.items() if name.startswith(prefix)]
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(service.stop() for service in group))
        for name, service in self.services.items():
            if name.startswith("etcd"):
                await service.stop(signal.SIGKILL)

    async def apply(self) -> None:
        """Applies every model. Raises AdminError."""
        async with ClusterAdmin(self.controllers) as admin:
            for model in self.versions.models:
                await admin.apply_model(self.spec(model, 0))

    async def snapshot(self) -> pb.ClusterSnapshot | None:
        """The cluster as the leader tells it; None while none does."""
        leader = await self.leader()
        if leader is None:
            return None
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels[leader])
        try:
            answer: pb.GetSnapshotResponse = await stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=2.0)
        except grpc.aio.AioRpcError:
            return None
        return answer.snapshot

    async def leader(self) -> int | None:
        """Index of the controller that leads; None while none does."""
        answers = await asyncio.gather(*map(self._leads, range(self.shape.controllers)))
        return answers.index(True) if True in answers else None

    def spec(self, model: str, version: int) -> pb.ModelSpec:
        """What is applied for a version of a model."""
        spec = pb.ModelSpec(name=model, engine=ENGINE, gpus_per_instance=1, max_batch_size=_BATCH_SIZE)
        spec.min_instances = self.shape.replicas
        spec.roll.hold_s = _HOLD_S
        spec.engine_args.update(self.versions.arguments(model, version))
        return spec

    def workers(self) -> list[tuple[Process, dict[str, str]]]:
        """The leaders of the workers' sessions, each with its environment."""
        return [
            (process, environ)
            for process, environ in self.processes.live()
            if process.session == process.pid and environ.get("CUDA_VISIBLE_DEVICES")
        ]

    async def _enter(self) -> None:
        self._log(f"every process of the run has {self.mark} in its environment")
        self.gpu_folder.mkdir(parents=True)
        await asyncio.to_thread(self._start_reaper)
        shape = self.shape
        counts = (shape.etcd, shape.etcd, shape.controllers, shape.routers)
        ports = iter(free_ports(sum(counts)))
        etcd, peers, controllers, routers = ([next(ports) for _ in range(count)] for count in counts)
        for prefix, group in (
            ("etcd", etcd),
            ("peer", peers),
            ("controller", controllers),
            ("router", routers),
        ):
            for index, port in enumerate(group):
                link = Link(f"{prefix}-{index}", f"{_HOST}:{port}")
                self.links[link.name] = await self._stack.enter_async_context(link)
        worker_ports = [free_range(_PORTS_PER_NODE) for _ in range(shape.agents)]
        for node, own in enumerate(worker_ports):
            for link in doors(node, own):
                self.links[link.name] = await self._stack.enter_async_context(link)
        self._add_etcd(etcd, peers)
        await self._up("etcd")
        self._add_controllers(controllers)
        await self._up("controller")
        self._add_routers(routers)
        self._add_agents(worker_ports)
        await self._up("router", "node")
        # Past the links: what is looked at is the controllers, not the ways to them.
        self._channels = [grpc.aio.insecure_channel(f"{_HOST}:{port}") for port in controllers]

    async def _leads(self, index: int) -> bool:
        """True when this controller itself answers as a leader does."""
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels[index])
        try:
            await stub.GetSnapshot(pb.GetSnapshotRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return True

    def _start_reaper(self) -> None:
        """Starts the process that cleans up should this one be killed. It has no mark."""
        reaper = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.reaper", str(os.getpid()), self.mark], start_new_session=True
        )

        def end() -> None:
            reaper.kill()
            reaper.wait()

        self._stack.callback(end)

    async def _up(self, *prefixes: str) -> None:
        names = [name for name in self.services if name.startswith(prefixes)]
        for name in names:
            if name not in self._running:
                self._running[name] = asyncio.create_task(self.services[name].run(), name=name)
        await asyncio.gather(*(self.services[name].wait_up() for name in names))

    def _environ(self, **more: str) -> dict[str, str]:
        name, _, value = self.mark.partition("=")
        return {name: value, **more}

    def _addresses(self, prefix: str) -> list[str]:
        return [link.address for name, link in self.links.items() if name.startswith(f"{prefix}-")]

    def _add_etcd(self, ports: Sequence[int], peers: Sequence[int]) -> None:
        urls = [f"http://{address}" for address in self._addresses("peer")]
        members = ",".join(f"m{index}={url}" for index, url in enumerate(urls))
        for index, (port, peer) in enumerate(zip(ports, peers, strict=True)):
            name = f"etcd-{index}"
            command = [
                binary(),
                f"--name=m{index}",
                f"--data-dir={self.folder / name}",
                f"--listen-client-urls=http://{_HOST}:{port}",
                f"--advertise-client-urls=http://{_HOST}:{port}",
                f"--listen-peer-urls=http://{_HOST}:{peer}",
                f"--initial-advertise-peer-urls={urls[index]}",
                f"--initial-cluster={members}",
                "--heartbeat-interval=100",
                "--election-timeout=1000",
                # Processes die here, not machines.
                "--unsafe-no-fsync",
                "--log-level=error",
            ]
            self._add(
                Program(
                    name,
                    command,
                    self._environ(),
                    self.folder,
                    self._log,
                    serves=lambda port=port: _etcd_serves(port),  # type: ignore[misc]
                )
            )

    def _add_controllers(self, ports: Sequence[int]) -> None:
        for index, port in enumerate(ports):
            settings = {
                "listen": f"{_HOST}:{port}",
                "store.kind": "etcd",
                "store.endpoints": ",".join(self._addresses("etcd")),
                "store.prefix": PREFIX,
                # The run compacts it itself, once it has read it.
                "store.history_s": "0",
                "advertise": self.links[f"controller-{index}"].address,
                # Keys change many times in a run.
                "ticket_key_period_s": "30",
            }
            self._add_python(f"controller-{index}", "services.global_controller", settings)

    def _add_routers(self, ports: Sequence[int]) -> None:
        for index, port in enumerate(ports):
            settings = {
                "listen": f"{_HOST}:{port}",
                "router_id": f"router-{index}",
                "table_file": str(self.folder / f"router-{index}.table"),
                "controller": ",".join(self.controllers),
            }
            self._add_python(f"router-{index}", "services.router", settings)

    def _add_agents(self, worker_ports: Sequence[range]) -> None:
        for index, own in enumerate(worker_ports):
            name = f"node-{index}"
            settings = {
                "controller": ",".join(self.controllers),
                "node_id": name,
                "gpus": str(GPUS_PER_NODE),
                "advertise_host": node_host(index),
                "worker_ports": f"{own.start}-{own.stop - 1}",
                "state_dir": str(self.folder / name),
                "drain_timeout_s": "15",
                "stop_grace_s": "5",
                # Faults are nobody's fault: an agent must give up neither a victim nor its GPUs.
                "cordon_after_failed_starts": "0",
                "stable_after_s": "0.5",
                "restart_backoff_s": "0.2",
            }
            environ = {NODE: name, GPUS: str(self.gpu_folder)}
            self._add_python(name, "services.local_agent", settings, **environ)

    def _add_python(self, name: str, module: str, settings: Mapping[str, str], **environ: str) -> None:
        self._add(PythonService(name, module, settings, self._environ(**environ), self.folder, self._log))

    def _add(self, service: Service) -> None:
        self.services[service.name] = service


def _etcd_serves(port: int) -> bool:
    """True when the member answers and knows a leader."""
    with grpc.insecure_channel(f"{_HOST}:{port}") as channel:
        call = channel.unary_unary(
            STATUS.path,
            request_serializer=STATUS.request.SerializeToString,
            response_deserializer=STATUS.response.FromString,
        )
        try:
            return bool(call(STATUS.request(), timeout=1.0).leader)
        except grpc.RpcError:
            return False
