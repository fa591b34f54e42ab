"""Failures of instances and nodes: planned ones and random ones."""

from __future__ import annotations

from math import inf, isfinite

import numpy as np

from chiron.sim.agenda import Agenda
from chiron.sim.cluster import Cluster
from chiron.sim.gpus import Gpus
from chiron.sim.settings import Fault, SimSettings


class Faults:
    """Puts the failures of one run down on the agenda."""

    def __init__(self, settings: SimSettings, agenda: Agenda, cluster: Cluster, gpus: Gpus) -> None:
        self._settings = settings.faults
        self._agenda = agenda
        self._cluster = cluster
        self._gpus = gpus
        self._rng = np.random.default_rng((settings.seed, 4))

    def begin(self) -> None:
        """Put down the planned failures and the first random ones."""
        for fault in self._settings.planned:
            self._agenda.at(fault.at_s, self._strike, fault)
        self._next_random("instance", 0.0)
        self._next_random("node", 0.0)

    def _next_random(self, kind: str, now: float) -> None:
        # The exponential distribution has no memory: one clock for all of a kind, drawn anew each time.
        instances = kind == "instance"
        mtbf_s = self._settings.instance_mtbf_s if instances else self._settings.node_mtbf_s
        if isfinite(mtbf_s):
            exposed = len(self._cluster.instances) if instances else len(self._gpus.nodes)
            wait_s = float(self._rng.exponential(mtbf_s / max(1, exposed)))
            self._agenda.at(now + wait_s, self._strike_random, kind)

    def _strike_random(self, now: float, kind: str) -> None:
        target = int(self._rng.integers(1 << 30))
        if kind == "instance":
            self._strike(now, Fault(now, "instance", target))
        else:
            self._strike(now, Fault(now, "node", target, self._settings.node_repair_s))
        self._next_random(kind, now)

    def _strike(self, now: float, fault: Fault) -> None:
        if fault.kind == "instance":
            alive = [instance for instance in self._cluster.instances.values() if not instance.dead]
            if alive:
                self._cluster.fail(alive[fault.target % len(alive)], now)
            return
        up = [node for node in self._gpus.nodes if node not in self._gpus.down]
        if not up:
            return
        node = up[fault.target % len(up)]
        self._gpus.down.add(node)
        for instance in list(self._cluster.instances.values()):
            if instance.identity.node_id == node and not instance.dead:
                self._cluster.fail(instance, now)
        if fault.repair_s < inf:
            self._agenda.at(now + fault.repair_s, self._repair, node)

    def _repair(self, now: float, node: str) -> None:
        self._gpus.down.discard(node)
