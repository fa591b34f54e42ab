"""Who gets the GPUs: by priority, then SLO deficit per GPU (architecture's rule; details reconstructed)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """One model's wish for further instances of a role."""

    model: ModelFleet
    role: Role
    count: int
    deficit: float
    """Share of the demand that goes unserved without them, 0 to 1."""


class FreeGpus:
    """The GPUs that may be taken at this tick: on nodes, by GPU type, and within the budget."""

    def __init__(self, snapshot: FleetSnapshot) -> None:
        # By GPU type: free GPUs of a node → the nodes that have so many.
        self._nodes: dict[str, dict[int, dict[str, None]]] = {}
        self._counted = snapshot.free_gpus
        self._free = dict(snapshot.free_gpus)
        self._types = snapshot.gpu_types
        self._barred: set[str] = set()
        self._most_barred: dict[str, int] = {}
        for node, free in snapshot.free_gpus.items():
            self._list(node, free)
        held = sum(
            model.gpus_per_instance
            for model in snapshot.models
            for instance in model.instances
            if instance.phase is not Phase.SLEEPING
        )
        self._budget = snapshot.gpu_budget - held if snapshot.gpu_budget else None

    @property
    def budget(self) -> int | None:
        """GPUs that the budget still allows, below 0 once more are promised than it has; None: no budget."""
        return self._budget

    def left(self, node: str) -> int:
        """GPUs of a node that are still free, if instances that start go where `take` supposes."""
        return self._free.get(node, 0)

    def of_type(self, gpu_type: str) -> list[str]:
        """The nodes on which an instance that needs this type may start, "" being any."""
        return [node for node in self._counted if not gpu_type or self._types.get(node, "") == gpu_type]

    def within_budget(self, gpus: int) -> int:
        """Instances of this many GPUs that the budget still allows, up to a large number."""
        return 1_000_000 if self._budget is None else max(0, self._budget) // gpus

    def why_none(self, gpus: int, whom: str) -> str:
        """Why an instance of this many GPUs gets none: the budget where it is spent, else the nodes."""
        if self.within_budget(gpus) < 1:
            return f"the GPU budget leaves none for {whom}"
        return f"no GPU is left for {whom}"

    def promise(self, gpus: int) -> None:
        """Keep this much of the budget for one that is to start later."""
        if self._budget is not None:
            self._budget -= gpus

    def bar(self, node: str) -> None:
        """Keep a node, with what will become free there, from everybody who asks from now on."""
        if node in self._barred:
            return
        self._barred.add(node)
        free, gpu_type = self.left(node), self._types.get(node, "")
        if free > 0:
            self._unlist(node, free)
            self._most_barred[gpu_type] = max(free, self._most_barred.get(gpu_type, 0))

    def wake(self, instance: FleetInstance, gpus: int) -> bool:
        """Take the GPUs of a sleeping instance that can wake for it; False: they may have been promised.

        GPUs that its node did not count as free are its own to have back, as `can_wake` says. Those counted
        may be its own, so that once too few of them are left it waits for the next tick. Also False on a
        barred node, and when the budget is spent.
        """
        node = instance.node_id
        if node in self._barred or self.within_budget(gpus) < 1:
            return False
        left = self.left(node)
        if left < min(gpus, self._counted.get(node, 0)):
            return False
        self._use(node, min(gpus, left))
        self.promise(gpus)
        return True

    def take(self, gpus: int, gpu_type: str) -> bool:
        """Take this many on the fullest node that has them.

        False: no node has, the budget is spent, or they might be taken on a barred node: a start names no
        node, so that placement may choose any that has room.
        """
        types = (gpu_type,) if gpu_type else tuple(self._nodes.keys() | self._most_barred.keys())
        if self.within_budget(gpus) < 1 or any(self._most_barred.get(kind, 0) >= gpus for kind in types):
            return False
        fitting = [(free, kind) for kind in types for free in self._nodes.get(kind, ()) if free >= gpus]
        if not fitting:
            return False
        free, kind = min(fitting)
        self._use(next(iter(self._nodes[kind][free])), gpus)
        self.promise(gpus)
        return True

    def _use(self, node: str, gpus: int) -> None:
        free = self.left(node)
        self._unlist(node, free)
        self._free[node] = free - gpus
        self._list(node, free - gpus)

    def _list(self, node: str, free: int) -> None:
        if free > 0:
            self._nodes.setdefault(self._types.get(node, ""), {}).setdefault(free, {})[node] = None

    def _unlist(self, node: str, free: int) -> None:
        if free > 0:
            counts = self._nodes[self._types.get(node, "")]
            del counts[free][node]
            if not counts[free]:
                del counts[free]


def grant(requests: Sequence[GpuRequest], free: FreeGpus) -> list[int]:
    """How many instances each request gets, one at a time to the most urgent.

    Urgency: the lower priority value, then the larger deficit per GPU (what is left of it once the instances
    granted so far serve), then interactive before batch, then the model's name.
    """
    granted = [0] * len(requests)
    heap = [(_urgency(request, 0), index) for index, request in enumerate(requests) if request.count > 0]
    heapq.heapify(heap)
    while heap:
        _, index = heapq.heappop(heap)
        request = requests[index]
        if not free.take(request.model.gpus_per_instance, request.model.gpu_type):
            continue
        granted[index] += 1
        if granted[index] < request.count:
            heapq.heappush(heap, (_urgency(request, granted[index]), index))
    return granted


def _urgency(request: GpuRequest, granted: int) -> tuple[int, float, int, str]:
    left = request.deficit * (1 - granted / request.count)
    return (
        request.model.priority,
        -left / request.model.gpus_per_instance,
        int(request.role is Role.BATCH),
        request.model.name,
    )
