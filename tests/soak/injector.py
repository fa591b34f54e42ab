"""Carries a schedule out on a cluster: each fault in its time, never more at once than the limits allow."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chiron.cluster.readiness import is_ready
from chiron.cluster.workers import WorkerProcess, find_workers
from tests.soak.cluster import SoakCluster
from tests.soak.doors import door_of, port_of
from tests.soak.gpus import Process, stat
from tests.soak.history_watch import HistoryWatch
from tests.soak.links import Link
from tests.soak.rolling import Roller
from tests.soak.schedule import Act, Domain, Fault, Target, domain_of, limit
from tests.soak.services import Service
from tests.soak.until import until

_VICTIM_S = 60.0
"""How long a fault waits for somebody to strike."""
_RETURN_S = 60.0
"""How long a fault's domain is kept closed for others while what was struck has not come back."""
_SIGNALS = {Act.KILL: signal.SIGKILL, Act.RESTART: signal.SIGTERM, Act.FREEZE: signal.SIGSTOP}
_LINKS = {
    Target.ROUTER_LINK: "router",
    Target.CONTROLLER_LINK: "controller",
    Target.ETCD_LINK: "etcd",
    Target.PEER_LINK: "peer",
}


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that was chosen."""

    name: str
    process: Process
    service: Service | None = None
    """None: a worker or its engine, which an agent starts again."""
    starts: int = 0
    """Of the service, before it was struck."""

    async def gone(self) -> bool:
        """True once the process has ended."""
        return not self.process.lives


class Injector:
    """One run's faults."""

    def __init__(
        self,
        cluster: SoakCluster,
        history: HistoryWatch,
        log: Callable[[str], None],
        *,
        reckless: bool = False,
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._roller = Roller(cluster, log)
        self._log = log
        self._reckless = reckless
        self._rooms: dict[Domain, asyncio.Semaphore] = {}
        self.injected = 0
        self.skipped = 0
        """Faults that found nobody to strike."""
        self.late = 0
        """Victims that were not back, and models not at rest, in time."""
        self._struck: set[Process] = set()
        """Processes that a fault has struck and waits for."""
        self.kinds: Counter[str] = Counter()
        """Injected faults by act and target."""

    async def run(self, schedule: Sequence[Fault]) -> None:
        """Returns when the last fault is over. Cancelling it ends what lasts."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(schedule):
                await asyncio.sleep(max(0.0, begin + fault.at_ms / 1000 - loop.time()))
                group.create_task(self._one(number, fault))

    async def _one(self, number: int, fault: Fault) -> None:
        domain = domain_of(fault.target, fault.index, self._cluster.shape)
        room = self._rooms.get(domain)
        if room is None:
            most = limit(domain, self._cluster.shape, reckless=self._reckless)
            room = self._rooms[domain] = asyncio.Semaphore(most)
        async with room:
            match fault.target:
                case Target.WORKER_LINK:
                    await self._strike_worker_link(number, fault)
                case Target.MODEL:
                    await self._change_model(number, fault)
                case Target.HISTORY:
                    await self._compact(number, fault)
                case target if target in _LINKS:
                    link = self._cluster.links[f"{_LINKS[target]}-{fault.index}"]
                    await self._strike_link(number, fault, link, f"link {link.name}")
                case _:
                    await self._strike_process(number, fault)

    async def _strike_link(self, number: int, fault: Fault, link: Link, whom: str) -> None:
        self._note(number, fault, whom)
        _weaken(link, fault)
        try:
            await asyncio.sleep(fault.for_ms / 1000)
        finally:
            link.heal()

    async def _strike_worker_link(self, number: int, fault: Fault) -> None:
        found = await until(lambda: self._choose_link(fault), _VICTIM_S)
        if found is None:
            self._skip(number, fault)
            return
        worker, link = found
        whom = f"link to {worker.instance_id} on {worker.node_id}"
        await self._strike_link(number, fault, link, whom)
        doubts: list[str] = []

        async def trusted() -> bool:
            doubts[:] = await self._doubts(worker.instance_id)
            return not doubts

        if not await until(trusted, _RETURN_S):
            self._is_late(number, f"{whom} ({'; '.join(doubts)})")

    async def _change_model(self, number: int, fault: Fault) -> None:
        model = f"model-{fault.index}"
        self._note(number, fault, model)
        change = self._roller.roll if fault.act is Act.ROLL else self._roller.spoil
        if await change(model):
            self._log(f"{model} has come to rest after fault {number}")
        else:
            self._is_late(number, model)

    async def _compact(self, number: int, fault: Fault) -> None:
        revision = await self._history.compact()
        if revision is None:
            self._skip(number, fault)
        else:
            self._note(number, fault, f"etcd before revision {revision}")

    async def _strike_process(self, number: int, fault: Fault) -> None:
        victim = await until(lambda: self._choose(fault), _VICTIM_S)
        if victim is None:
            self._skip(number, fault)
            return
        self._note(number, fault, f"{victim.name} pid {victim.process.pid}")
        self._struck.add(victim.process)
        try:
            await self._strike_victim(number, fault, victim)
        finally:
            self._struck.discard(victim.process)

    async def _strike_victim(self, number: int, fault: Fault, victim: Victim) -> None:
        _send(victim.process, _SIGNALS[fault.act])
        if fault.act is Act.FREEZE:
            try:
                await asyncio.sleep(fault.for_ms / 1000)
            finally:
                _send(victim.process, signal.SIGCONT)
        else:
            await until(victim.gone, _RETURN_S)
        if not await until(lambda: self._serves(fault, victim), _RETURN_S):
            self._is_late(number, victim.name)

    def _skip(self, number: int, fault: Fault) -> None:
        self.skipped += 1
        self._log(f"fault {number} skipped, nobody to strike: {fault.line()}")

    def _is_late(self, number: int, whom: str) -> None:
        self.late += 1
        self._log(f"{whom} was not back in time after fault {number}")

    def _note(self, number: int, fault: Fault, whom: str) -> None:
        self.injected += 1
        self.kinds[f"{fault.act} {fault.target}"] += 1
        lasts = f" for {fault.for_ms} ms" if fault.for_ms else ""
        delay = f" by {fault.delay_ms} ms" if fault.delay_ms else ""
        self._log(f"fault {number}: {fault.act} {fault.target} {fault.index}{lasts}{delay}: {whom}")

    async def _choose(self, fault: Fault) -> Victim | None:
        cluster = self._cluster
        match fault.target:
            case Target.WORKER | Target.ENGINE:
                return self._choose_worker(fault)
            case Target.AGENT:
                name = f"node-{fault.index}"
            case Target.ROUTER:
                name = f"router-{fault.index}"
            case Target.ETCD:
                name = f"etcd-{fault.index}"
            case _:
                leader = await cluster.leader()
                if leader is None:
                    return None
                followers = [index for index in range(cluster.shape.controllers) if index != leader]
                index = leader if fault.target is Target.LEADER else followers[fault.index]
                name = f"controller-{index}"
        service = cluster.services[name]
        process = stat(service.pid) if service.up else None
        if process is None or process.pid in {struck.pid for struck in self._struck}:
            return None
        return Victim(name, process, service, service.starts)

    async def _choose_link(self, fault: Fault) -> tuple[WorkerProcess, Link] | None:
        worker = self._worker_at(fault.index)
        port = None if worker is None else port_of(worker.pid)
        link = None if port is None else self._cluster.links.get(door_of(port))
        return None if worker is None or link is None else (worker, link)

    def _worker_at(self, index: int) -> WorkerProcess | None:
        model, place = divmod(index, self._cluster.shape.replicas)
        workers = sorted(
            (each for each in self._workers() if each.model == f"model-{model}"),
            key=lambda each: each.instance_id,
        )
        return workers[place % len(workers)] if workers else None

    def _choose_worker(self, fault: Fault) -> Victim | None:
        worker = self._worker_at(fault.index)
        if worker is None:
            return None
        if fault.target is Target.WORKER:
            process = stat(worker.pid)
        else:
            process = next(
                (
                    process
                    for process, _ in self._cluster.processes.live()
                    if process.session == worker.pid and process.pid != worker.pid
                ),
                None,
            )
        if process is None:
            return None
        return Victim(f"{fault.target} {worker.instance_id} on {worker.node_id}", process)

    def _workers(self) -> list[WorkerProcess]:
        cluster = self._cluster
        names = [f"node-{index}" for index in range(cluster.shape.agents)]
        return [worker for name in names for worker in find_workers(cluster.folder / name, name)]

    async def _doubts(self, instance_id: str) -> list[str]:
        """Why routers keep requests from the instance on their own evidence; empty: none does.

        Where it may have one on trial now, it is for lack of requests that it still counts as ejected.
        """
        snapshot = await self._cluster.snapshot()
        if snapshot is None:
            return ["nobody leads"]
        return [
            f"{router.router_id}: {ejected.reason}, on trial in {ejected.retry_in_ms:.0f} ms"
            for router in snapshot.routers
            for ejected in router.ejected
            if ejected.instance_id == instance_id and ejected.retry_in_ms > 0
        ]

    async def _serves(self, fault: Fault, victim: Victim) -> bool:
        """True when what was struck is in service again, as far as can be told."""
        if victim.service is not None:
            return victim.service.up and (fault.act is Act.FREEZE or victim.service.starts > victim.starts)
        model = f"model-{fault.index // self._cluster.shape.replicas}"
        gone = 0 if fault.act is Act.FREEZE else victim.process.session
        alive = {worker.instance_id for worker in self._workers() if worker.pid != gone}
        snapshot = await self._cluster.snapshot()
        return (
            snapshot is not None
            and is_ready(snapshot, model)
            and {each.instance_id for each in snapshot.instances if each.model == model} <= alive
        )


def _weaken(link: Link, fault: Fault) -> None:
    match fault.act:
        case Act.DELAY:
            link.delay(fault.delay_ms / 1000)
        case Act.CUT:
            link.cut()
        case _:
            link.reset()


def _send(process: Process, number: signal.Signals) -> None:
    if process.lives:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
