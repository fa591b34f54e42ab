"""A cluster of real processes on this machine: controllers, routers, and agents with declared GPUs."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from types import TracebackType
from typing import Any

from chiron.auth.api_keys import key_in
from chiron.cluster.admin import ClusterAdmin
from chiron.cluster.admin_key import admin_key_file
from chiron.cluster.batch_store import router_keys
from chiron.cluster.control_tls import check_control_tls
from chiron.cluster.keeping import Keeper, keeps_state, start_sweeper
from chiron.cluster.local_etcd import start_etcd
from chiron.cluster.process import ServiceProcess, StartError
from chiron.cluster.readiness import failures, is_ready, obstacle
from chiron.cluster.run_folder import hold_run_folder, new_run_folder, remove_old_runs, use_run_folder
from chiron.cluster.workers import WorkerProcess, find_workers
from chiron.rpc.identity import present
from chiron.v1 import cluster_pb2 as pb

_LEADER_WITHIN_S = 20.0
"""How long the operator's calls wait for a leader, in seconds: a lease has to end before another leads."""

Progress = Callable[[pb.ClusterSnapshot], None]


class ModelFailedError(Exception):
    """A model will not come up as asked; the text gives the instances' reasons."""


class LocalCluster:
    """Starts the processes on entry and drains them on exit: agents, then routers, controllers, and etcd.

    ```python
    async with LocalCluster(nodes=2, gpus=2) as cluster:
        await cluster.apply(read_models(Path("examples/models.toml")))
        await cluster.wait_ready()
        async with Client(cluster.router_addresses) as client: ...
    ```
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        gpus: int = 2,
        routers: int = 1,
        controllers: int = 1,
        etcd: bool = False,
        etcd_endpoints: Sequence[str] = (),
        directory: Path | None = None,
        host: str = "127.0.0.1",
        controller_port: int = 0,
        router_port: int = 0,
        http_port: int | None = None,
        config: Path | None = None,
        settings: Mapping[str, Mapping[str, str]] | None = None,
        environ: Mapping[str, str] | None = None,
        worker_python: str = "",
        worker_env: Mapping[str, str] | None = None,
        drain_timeout_s: float = 10.0,
        batch_store: str | None = None,
    ) -> None:
        """Describes the cluster.

        Args:
            nodes: agents, named node-0, node-1, …
            gpus: GPUs that each agent declares.
            routers: routers; with a router_port they take consecutive ports.
            controllers: controllers, one of which leads; more than one needs etcd. With a controller_port
                they take consecutive ports.
            etcd: keep the state in an etcd of this cluster's own, below its directory, where it outlives it.
            etcd_endpoints: keep it in this one instead.
            directory: logs and state of this run; None: a new `.chiron/run-<time>`, of which the newest
                ten and those in use are kept.
            host: address that everything listens on.
            controller_port: 0: any free one; see `controller_address`.
            router_port: 0: any free one; see `router_addresses`.
            http_port: of the routers' HTTP doors, consecutive where there are several; 0: any free ones, see
                `http_urls`; None: as configured.
            config: TOML file with tables of the services.
            settings: service (`controller`, `router`, `agent`) → key → value, over the file.
            environ: variables added to every process's environment.
            worker_python: interpreter that runs workers; empty: this one.
            worker_env: variables added to the workers' environment alone.
            drain_timeout_s: time that requests have to finish when the cluster stops.
            batch_store: where batches are kept, as `[router.batch] store`, or `none`; empty: in a file below
                the directory; None: as configured. Only the first router has a file.

        Raises:
            StartError: no folder is given and none can be made; several controllers without etcd.
        """
        configured = config is not None or "store.kind" in (settings or {}).get("controller", {})
        if controllers > 1 and not (etcd or etcd_endpoints or configured):
            raise StartError(
                "several controllers share their state in etcd: add --etcd, or --etcd HOST:PORT",
                bad_start=True,
            )
        self.directory = directory or new_run_folder()
        self._named = directory is not None
        self.nodes = [f"node-{index}" for index in range(nodes)]
        self._gpus = gpus
        self._routers = routers
        self._controllers = controllers
        self._own_etcd = etcd and not etcd_endpoints
        self._etcd_endpoints = list(etcd_endpoints)
        self._host = host
        self._controller_port = controller_port
        self._router_port = router_port
        self._http_port = http_port
        self._config = config
        self._settings = {name: dict(keys) for name, keys in (settings or {}).items()}
        self._environ = dict(environ or {})
        self._worker_python = worker_python
        self._worker_env = dict(worker_env or {})
        self._drain_timeout_s = drain_timeout_s
        self._batch_store = batch_store
        self._key_file = admin_key_file(self.directory, config, self._settings.get("controller", {}))
        self.api_key = ""
        """An administrator's, once the controller has been started."""
        self._models: list[str] = []
        self._admin: ClusterAdmin | None = None
        self._recipes: dict[str, tuple[str, str, dict[str, str]]] = {}
        self._starting: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._hold: ExitStack | None = None
        """While the run's folder is this cluster's; what lives there is no business of its own before."""
        self.processes: dict[str, ServiceProcess] = {}
        """Running services by name: controller (controller-0, … where there are several), router-0, node-0,
        etcd, …"""
        lasting = etcd or bool(etcd_endpoints)
        lasting = lasting or keeps_state(config, self._settings.get("controller", {}), self._environ)
        self._keeper = Keeper(self.processes, self.start_again, lasting_state=lasting)

    @property
    def controller_addresses(self) -> list[str]:
        """host:port of each controller."""
        return [
            str(p.announced["address"]) for name, p in self.processes.items() if name.startswith("controller")
        ]

    @property
    def controller_address(self) -> str:
        """host:port of the controllers, separated by commas."""
        return ",".join(self.controller_addresses)

    @property
    def admin(self) -> ClusterAdmin:
        """The operator's calls on this cluster."""
        assert self._admin is not None, "enter the cluster first"
        return self._admin

    @property
    def router_addresses(self) -> list[str]:
        """host:port of each router."""
        return [
            str(p.announced["address"]) for name, p in self.processes.items() if name.startswith("router")
        ]

    @property
    def http_urls(self) -> list[str]:
        """Where the HTTP door of each router is that has one, as `http://host:port`, in the routers' order.

        The first is the one that keeps batches where only one does.
        """
        return [str(p.announced["http"]) for p in self.processes.values() if "http" in p.announced]

    async def __aenter__(self) -> LocalCluster:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def apply(self, specs: Sequence[pb.ModelSpec]) -> None:
        """Applies models. Raises AdminError for a spec that the controller refuses."""
        for spec in specs:
            await self.admin.apply_model(spec)
            self._models.append(spec.name)

    async def wait_ready(self, *models: str, progress: Progress | None = None) -> pb.ClusterSnapshot:
        """Waits until every desired instance is ready and returns the snapshot that shows it.

        Args:
            models: names; none: every model that was applied here.
            progress: called with each snapshot on the way.

        Raises:
            ModelFailedError: an instance has failed for good, or cannot be placed.
            StartError: a service process ended meanwhile.
        """
        wanted = models or tuple(self._models)

        def ready(snapshot: pb.ClusterSnapshot) -> bool:
            if progress is not None:
                progress(snapshot)
            failed = [failure for model in wanted for failure in failures(snapshot, model)]
            if failed:
                raise ModelFailedError("failed: " + "; ".join(failed))
            stuck = [f"{model}: {why}" for model in wanted if (why := obstacle(snapshot, model))]
            if stuck:
                raise ModelFailedError("; ".join(stuck))
            return all(is_ready(snapshot, model) for model in wanted)

        return await self.wait_for(ready)

    async def wait_for(self, condition: Callable[[pb.ClusterSnapshot], object]) -> pb.ClusterSnapshot:
        """Returns the first snapshot that meets the condition. Raises StartError when a service ends."""
        searching = asyncio.ensure_future(self._search(condition))
        ending = asyncio.ensure_future(self.wait_ended())
        try:
            await asyncio.wait({searching, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done() and searching.exception() is not None:
                # A stream breaks a moment before its server is seen to have ended, and that tells more.
                await asyncio.wait({ending}, timeout=1.0)
            if ending.done():
                raise StartError(ending.result())
            return searching.result()
        finally:
            searching.cancel()
            ending.cancel()
            await asyncio.gather(searching, ending, return_exceptions=True)

    async def wait_ended(self, lost: Callable[[str], None] | None = None) -> str:
        """Returns which service process ended, and how, as soon as the cluster cannot do without it.

        The others are started again; see `Keeper`. `lost` is told either way.
        """
        return await self._keeper.first_loss(lost)

    async def start_again(self, name: str) -> ServiceProcess:
        """Starts a service that has ended, with its address, folder and settings. Raises StartError."""
        async with self._starting[name]:
            ended = self.processes[name]
            if ended.running:  # Somebody else was faster.
                return ended
            address = str(ended.announced.get("address", ""))
            http = str(ended.announced.get("http", "")).partition("://")[2]
            if name == "etcd":
                self.processes[name] = await start_etcd(self.directory, address)
            else:
                await self._launch(name, *self._recipes[name], address=address, http=http)
            return self.processes[name]

    async def kill_node(self, node: str) -> None:
        """Ends a node's agent and workers at once, as a power cut would."""
        agent = self.processes.pop(node)
        agent.kill()
        await agent.wait()
        for worker in find_workers(self.node_directory(node), node):
            worker.kill()

    def workers(self) -> list[WorkerProcess]:
        """The worker processes that live now, from the agents' state files."""
        return [worker for node in self.nodes for worker in find_workers(self.node_directory(node), node)]

    def node_directory(self, node: str) -> Path:
        """State folder of a node's agent; the workers' logs lie below it."""
        return self.directory / node

    async def stop(self) -> None:
        """Drains and stops everything; what does not end in time is killed. May be called twice."""
        # An agent drains, then gives each worker its own grace period.
        grace_s = self._drain_timeout_s + 20.0
        try:
            for prefix in ("node-", "router-", "controller", "etcd", "sweeper"):
                group = [service for name, service in self.processes.items() if name.startswith(prefix)]
                await asyncio.gather(*(service.stop(grace_s) for service in group))
            if self._admin is not None:
                await self._admin.close()
        finally:
            # A second Ctrl-C cancels the drain; nothing may be left then either.
            for service in self.processes.values():
                service.kill()
            if self._hold is not None:
                for worker in self.workers():
                    worker.kill()
                self._hold.close()

    async def _start(self) -> None:
        check_control_tls(present().tls, self._config, self._settings.get("controller", {}), self._environ)
        if self._named:
            use_run_folder(self.directory)
        else:
            await asyncio.to_thread(remove_old_runs, self.directory.parent)
        self._hold = hold_run_folder(self.directory)
        if self._own_etcd:
            etcd = self.processes["etcd"] = await start_etcd(self.directory)
            self._etcd_endpoints = [str(etcd.announced["address"])]
        self.api_key = await asyncio.to_thread(key_in, self._key_file)
        names = (
            ["controller"]
            if self._controllers == 1
            else [f"controller-{i}" for i in range(self._controllers)]
        )
        await self._gather(
            self._launch(name, "controller", "global_controller", self._controller_keys(index))
            for index, name in enumerate(names)
        )
        # In the order of their names, whichever came up first.
        self.processes |= {name: self.processes.pop(name) for name in names}
        self._admin = ClusterAdmin(
            self.controller_addresses, timeout_s=_LEADER_WITHIN_S, api_key=self.api_key
        )
        self.processes["sweeper"] = await start_sweeper(self.directory, self._environ)
        routers = [f"router-{i}" for i in range(self._routers)]
        starts = [
            self._launch(name, "router", "router", self._router_keys(index))
            for index, name in enumerate(routers)
        ]
        starts += [self._launch(node, "agent", "local_agent", self._agent_keys(node)) for node in self.nodes]
        await self._gather(starts)
        self.processes |= {name: self.processes.pop(name) for name in routers}
        await self.wait_for(self._assembled)

    async def _gather(self, starts: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Waits for all of them, so that none is left half-started by another's failure."""
        for outcome in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _launch(
        self,
        name: str,
        section: str,
        package: str,
        keys: dict[str, str],
        *,
        address: str = "",
        http: str = "",
    ) -> None:
        listen = {"listen": address} if address else {}
        if http:
            listen["http.listen"] = http
        self._recipes[name] = section, package, keys
        self.processes[name] = await ServiceProcess.start(
            name,
            f"services.{package}",
            log=self.directory / f"{name}.log",
            settings={**self._auth_keys(section), **keys, **self._settings.get(section, {}), **listen},
            config=self._config,
            environ=self._environ,
        )

    def _controller_keys(self, index: int) -> dict[str, str]:
        port = self._controller_port + index if self._controller_port else 0
        keys = {"listen": f"{self._host}:{port}"}
        if self._etcd_endpoints:
            keys |= {"store.kind": "etcd", "store.endpoints": ",".join(self._etcd_endpoints)}
        return keys

    def _auth_keys(self, section: str) -> dict[str, str]:
        """What lets this cluster's own processes in, where the settings ask who calls."""
        key = "auth.admin_key_file" if section == "controller" else "auth.key_file"
        return {key: str(self._key_file)}

    def _router_keys(self, index: int) -> dict[str, str]:
        port = self._router_port + index if self._router_port else 0
        http = {}
        if self._http_port is not None:
            http_port = self._http_port + index if self._http_port else 0
            http["http.listen"] = f"{self._host}:{http_port}"
        return {
            **http,
            **router_keys(self._batch_store, self.directory, index),
            "listen": f"{self._host}:{port}",
            "controller": self.controller_address,
            "router_id": f"router-{index}",
            "table_file": str(self.directory / f"router-{index}.table"),
            "drain_timeout_s": f"{self._drain_timeout_s:g}",
        }

    def _agent_keys(self, node: str) -> dict[str, str]:
        keys = {
            "controller": self.controller_address,
            "node_id": node,
            "host": self._host,
            "gpus": str(self._gpus),
            "state_dir": str(self.node_directory(node)),
            "drain_timeout_s": f"{self._drain_timeout_s:g}",
        }
        if self._worker_python:
            keys["worker_python"] = self._worker_python
        if self._worker_env:
            keys["worker_env"] = ",".join(f"{name}={value}" for name, value in self._worker_env.items())
        return keys

    def _assembled(self, snapshot: pb.ClusterSnapshot) -> bool:
        live = {node.node_id for node in snapshot.nodes if node.live}
        return live >= set(self.nodes) and len(snapshot.routers) >= self._routers

    async def _search(self, condition: Callable[[pb.ClusterSnapshot], object]) -> pb.ClusterSnapshot:
        async with aclosing(self.admin.watch()) as snapshots:
            async for snapshot in snapshots:
                if condition(snapshot):
                    return snapshot
        raise AssertionError("watch ends with an error")
