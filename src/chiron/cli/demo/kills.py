"""Kills workers under load and sees them come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from chiron.cluster import LocalCluster
from chiron.cluster.workers import WorkerProcess
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

RETURN_S = 60.0
"""Time that a killed worker has to become ready again."""


class Killer:
    """SIGKILL for one ready worker at a time."""

    def __init__(self, cluster: LocalCluster, model: str, seed: int, say: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._model = model
        self._random = random.Random(f"victims-{seed}")
        self._say = say
        self._last_kill = 0.0
        self.killed = 0
        self.restarted = 0
        """Killed workers whose instance became ready again, in a new incarnation."""

    async def run(self, *, first_s: float, every_s: float | None, until_s: float) -> None:
        """Kills after `first_s` seconds, then every `every_s`, as long as `until_s` is not reached."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        due = first_s
        while due < until_s:
            await asyncio.sleep(start + due - loop.time())
            await self._kill_one()
            if every_s is None:
                return
            due = max(due + every_s, loop.time() - start)

    async def _kill_one(self) -> None:
        snapshot = await self._cluster.admin.snapshot()
        ready = {i.instance_id for i in snapshot.instances if is_serving(i, self._model)}
        candidates = [
            worker for worker in await asyncio.to_thread(self._cluster.workers) if worker.instance_id in ready
        ]
        if not candidates:
            self._say("no ready worker to kill")
            return
        victim = self._random.choice(candidates)
        self._last_kill = asyncio.get_running_loop().time()
        self.killed += 1
        victim.kill()
        self._say(f"killed worker {victim.instance_id} on {victim.node_id} (pid {victim.pid}, SIGKILL)")
        try:
            async with asyncio.timeout(RETURN_S):
                await self._cluster.wait_for(lambda seen: _is_back(seen, victim))
        except TimeoutError:
            self._say(f"worker {victim.instance_id} did not come back within {RETURN_S:g} s")
            return
        self.restarted += 1
        seconds = asyncio.get_running_loop().time() - self._last_kill
        self._say(f"worker {victim.instance_id} serves again after {seconds:.1f} s")


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
