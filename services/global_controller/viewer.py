"""Puts the reconciler's view together from what is on record and what has been heard."""

from __future__ import annotations

import logging
from collections.abc import Callable

from chiron.store import Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.health import HealthBook
from services.global_controller.registry import Registry
from services.global_controller.view import ClusterView, Liveness

_log = logging.getLogger(__name__)


class Viewer:
    """Remembers what only a series of views shows: how long instances are ready, which nodes have changed."""

    def __init__(self, registry: Registry, clock: Callable[[], float], *, gpu_budget: int = 0) -> None:
        """`gpu_budget`: see ClusterView."""
        self._gpu_budget = gpu_budget
        self._registry = registry
        self._clock = clock
        self._health = HealthBook()
        self._seen: dict[str, Liveness] = {}

    def view(self, snapshot: Snapshot, *, hold_s: float) -> ClusterView:
        """The cluster now; a node that has come or gone since the last time is logged.

        Args:
            snapshot: the state.
            hold_s: see ClusterView.
        """
        registry = self._registry
        nodes = tuple(registry.view(node) for _, node in sorted(snapshot.nodes.items()))
        for node in nodes:
            node_id = node.record.node_id
            if node.liveness is not self._seen.get(node_id):
                level = logging.WARNING if node.liveness is Liveness.DEAD else logging.INFO
                _log.log(level, "node %s is %s", node_id, node.liveness.name.lower())
                self._seen[node_id] = node.liveness
        return ClusterView(
            models=tuple(snapshot.models.values()),
            instances=tuple(snapshot.instances.values()),
            nodes=nodes,
            unknown=tuple(one for one in registry.unknown() if one.instance_id not in snapshot.instances),
            load={key: _requests(load) for key, load in registry.loads().items()},
            health=self._health.take(registry.statuses(), self._clock()),
            hold_s=hold_s,
            gpu_budget=self._gpu_budget,
            sleep_host_bytes=registry.sleep_host_bytes(),
            kept_host_bytes=registry.kept_host_bytes(),
            settling=registry.settling(),
        )


def _requests(load: cluster_pb2.InstanceLoad) -> int:
    return load.running.interactive + load.running.batch + load.waiting.interactive + load.waiting.batch
