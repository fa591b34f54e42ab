"""Kills workers under load, and once the controller that leads and an agent, and sees them come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chiron.cluster import LocalCluster
from chiron.cluster.workers import WorkerProcess
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

RETURN_S = 60.0
"""Time that a victim has to come back."""
SUPERVISOR_S = 1.0
"""Time after which a killed service is started again, as a supervisor on its host would."""


@dataclass(slots=True)
class Losses:
    """How often each was killed, and came back."""

    workers: int = 0
    agents: int = 0
    leaders: int = 0
    restarted: int = 0
    """Killed workers whose instance became ready again, in a new incarnation."""
    recovered: int = 0
    """Killed agents and leaders after which every node was connected again."""


class Killer:
    """SIGKILL for one ready worker at a time, and for the leader and an agent along with one of them."""

    def __init__(
        self, cluster: LocalCluster, model: str, seed: int, say: Callable[[str], None], *, leader: bool
    ) -> None:
        """`leader`: kill the leader too, because others are there to follow it."""
        self._cluster = cluster
        self._model = model
        self._random = random.Random(f"victims-{seed}")
        self._say = say
        self._leader = leader
        self.losses = Losses()

    async def run(self, *, first_s: float, every_s: float | None, control_s: float, until_s: float) -> None:
        """Kills workers, and the control plane once.

        Args:
            first_s: seconds until the first worker is killed.
            every_s: seconds between workers; None: one.
            control_s: seconds after which the next worker takes the leader and an agent along.
            until_s: seconds after which nobody is killed any more.
        """
        loop = asyncio.get_running_loop()
        start = loop.time()
        due = first_s
        while due < until_s:
            await asyncio.sleep(start + due - loop.time())
            control = not self.losses.agents and loop.time() - start >= control_s
            await self._kill_one(along=await self._control_victims() if control else ())
            if every_s is None:
                return
            due = max(due + every_s, loop.time() - start)

    async def _control_victims(self) -> list[str]:
        """The leader's service, where it may go, and an agent's."""
        victims = []
        if self._leader:
            snapshot = await self._cluster.admin.snapshot()
            leading = next(each.address for each in snapshot.controllers if each.leader)
            victims += [
                name
                for name, service in self._cluster.processes.items()
                if service.announced.get("address") == leading
            ]
        return [*victims, self._random.choice(self._cluster.nodes)]

    async def _kill_one(self, along: Iterable[str]) -> None:
        """Kills a worker that is answering somebody, and these services with it."""
        victim = await self._busy_worker()
        if victim is None:
            self._say("no ready worker to kill")
            return
        killed_at = asyncio.get_running_loop().time()
        for name in along:
            service = self._cluster.processes[name]
            service.kill()
            await service.wait()
            self._say(f"killed {name} (SIGKILL)")
        victim.kill()
        self._say(f"killed worker {victim.instance_id} on {victim.node_id} (pid {victim.pid}, SIGKILL)")
        self.losses.workers += 1
        agents = [name for name in along if name in self._cluster.nodes]
        leaders = [name for name in along if name not in agents]
        self.losses.agents += len(agents)
        self.losses.leaders += len(leaders)
        if along:
            await asyncio.sleep(SUPERVISOR_S)
            for name in along:
                await self._cluster.start_again(name)
        try:
            async with asyncio.timeout(RETURN_S):
                if along:
                    await self._cluster.wait_for(self._connected)
                    self.losses.recovered += len(agents) + len(leaders)
                    self._say(f"all nodes are connected again after {_since(killed_at)}")
                await self._cluster.wait_for(lambda seen: _is_back(seen, victim))
        except TimeoutError:
            self._say(f"not everything came back within {RETURN_S:g} s")
            return
        self.losses.restarted += 1
        self._say(f"worker {victim.instance_id} serves again after {_since(killed_at)}")

    async def _busy_worker(self) -> WorkerProcess | None:
        """A worker that runs requests; one that is merely ready where none does within a few reports."""
        ready: list[WorkerProcess] = []
        for _ in range(5):
            snapshot = await self._cluster.admin.snapshot()
            serving = {one.instance_id: one for one in snapshot.instances if is_serving(one, self._model)}
            workers = await asyncio.to_thread(self._cluster.workers)
            ready = [worker for worker in workers if worker.instance_id in serving]
            busy = [
                worker
                for worker in ready
                if serving[worker.instance_id].load.running.interactive
                or serving[worker.instance_id].load.running.batch
            ]
            if busy:
                return self._random.choice(busy)
            await asyncio.sleep(1.0)
        return self._random.choice(ready) if ready else None

    def _connected(self, snapshot: pb.ClusterSnapshot) -> bool:
        """Every node's agent has reported to the controller that leads now."""
        live = {node.node_id for node in snapshot.nodes if node.live}
        settling = any(each.settling for each in snapshot.controllers)
        return live >= set(self._cluster.nodes) and not settling


def is_serving(instance: pb.InstanceStatus, model: str) -> bool:
    """True for a ready instance of the model."""
    return instance.model == model and instance.state == types_pb2.INSTANCE_STATE_READY


def _is_back(snapshot: pb.ClusterSnapshot, victim: WorkerProcess) -> bool:
    return any(
        instance.instance_id == victim.instance_id
        and instance.incarnation != victim.incarnation
        and is_serving(instance, victim.model)
        for instance in snapshot.instances
    )


def _since(instant: float) -> str:
    return f"{asyncio.get_running_loop().time() - instant:.1f} s"
