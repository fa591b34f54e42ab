"""Kills a worker under load, and with it the controller that leads and an agent, and sees them come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from chiron.cluster import LocalCluster
from chiron.cluster.workers import WorkerProcess
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

RETURN_S = 60.0
"""Time that a victim has to come back."""
SUPERVISOR_S = 1.0
"""Time after which a killed service is started again, as a supervisor on its host would."""
_LOOKS, _LOOK_S = 20, 0.25
"""How often it looks for a worker that answers somebody, and the pause before it looks again, in seconds."""
_TO_COME = 8
"""Tokens that a stream must still have to come so that a kill cuts it: half a second of it and more."""


@dataclass(slots=True)
class Losses:
    """How often each was killed, and came back."""

    workers: int = 0
    agents: int = 0
    leaders: int = 0
    restarted: int = 0
    """Killed workers whose instance became ready again, in a new incarnation, or was not wanted any more."""
    recovered: int = 0
    """Killed agents and leaders after which every node was connected again."""


class Killer:
    """SIGKILL for a worker that answers, and for the leader and an agent along with it."""

    def __init__(
        self,
        cluster: LocalCluster,
        model: str,
        seed: int,
        say: Callable[[str], None],
        to_come: Mapping[int, tuple[str, int]],
        *,
        leader: bool,
    ) -> None:
        """Makes a killer that has not killed yet.

        Args:
            to_come: of each stream that has begun, its instance and how many tokens it still has to come.
            leader: kill the leader too, because others are there to follow it.
        """
        self._cluster = cluster
        self._model = model
        self._random = random.Random(f"victims-{seed}")
        self._say = say
        self._to_come = to_come
        self._leader = leader
        self.losses = Losses()

    async def run(self, at_s: float) -> None:
        """Kills a worker that is answering, an agent, and the leader where it may go, `at_s` from now."""
        await asyncio.sleep(at_s)
        await self._kill_one(along=await self._control_victims())

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

    async def _kill_one(self, along: Collection[str]) -> None:
        """Kills a worker that is answering somebody, and these services with it."""
        victim = await self._busy_worker()
        if victim is None:
            self._say("no ready worker to kill")
            return
        killed_at = asyncio.get_running_loop().time()
        # The worker first: what it answers is known from a moment ago.
        victim.kill()
        for name in along:
            self._cluster.processes[name].kill()
        for name in along:
            await self._cluster.processes[name].wait()
            self._say(f"killed {name} (SIGKILL)")
        self._say(f"killed worker {victim.instance_id} on {victim.node_id} (pid {victim.pid}, SIGKILL)")
        self.losses.workers += 1
        agents = [name for name in along if name in self._cluster.nodes]
        leaders = [name for name in along if name not in agents]
        self.losses.agents += len(agents)
        self.losses.leaders += len(leaders)
        await asyncio.sleep(SUPERVISOR_S)
        for name in along:
            await self._cluster.start_again(name)
        try:
            async with asyncio.timeout(RETURN_S):
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
        """The worker with most to come of a stream, once that is enough to cut; else a ready one."""
        ready: list[WorkerProcess] = []
        left: dict[str, int] = {}
        for _ in range(_LOOKS):
            snapshot = await self._cluster.admin.snapshot()
            serving = {one.instance_id for one in snapshot.instances if is_serving(one, self._model)}
            workers = await asyncio.to_thread(self._cluster.workers)
            ready = [worker for worker in workers if worker.instance_id in serving]
            left = {}
            for instance_id, tokens in self._to_come.values():
                left[instance_id] = max(tokens, left.get(instance_id, 0))
            if max((left.get(worker.instance_id, 0) for worker in ready), default=0) >= _TO_COME:
                break
            await asyncio.sleep(_LOOK_S)
        if any(left.get(worker.instance_id) for worker in ready):
            return max(ready, key=lambda worker: left.get(worker.instance_id, 0))
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
    """Whether the instance serves again, or is none that should."""
    found = [one for one in snapshot.instances if one.instance_id == victim.instance_id]
    leaving = (types_pb2.INSTANCE_STATE_DRAINING, types_pb2.INSTANCE_STATE_STOPPED)
    return all(
        one.state in leaving or (one.incarnation != victim.incarnation and is_serving(one, victim.model))
        for one in found
    )


def _since(instant: float) -> str:
    return f"{asyncio.get_running_loop().time() - instant:.1f} s"
