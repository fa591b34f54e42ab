"""Who gets the GPUs: by priority, then SLO deficit per GPU (architecture's rule; details reconstructed)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
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
        # By GPU type: free GPUs of a node → nodes that have so many. A sleeper's node is looked up by name.
        self._nodes: dict[str, dict[int, int]] = {}
        self._counted = snapshot.free_gpus
        self._free = dict(snapshot.free_gpus)
        self._types = snapshot.gpu_types
        for node, free in snapshot.free_gpus.items():
            if free > 0:
                counts = self._nodes.setdefault(snapshot.gpu_types.get(node, ""), {})
                counts[free] = counts.get(free, 0) + 1
        held = sum(
            model.gpus_per_instance
            for model in snapshot.models
            for instance in model.instances
            if instance.phase is not Phase.SLEEPING
        )
        self._budget = max(0, snapshot.gpu_budget - held) if snapshot.gpu_budget else None

    def within_budget(self, gpus: int) -> int:
        """Instances of this many GPUs that the budget still allows, up to a large number."""
        return 1_000_000 if self._budget is None else self._budget // gpus

    def wake(self, instance: FleetInstance, gpus: int) -> bool:
        """Take the GPUs of a sleeping instance that can wake for it; False: they may have been promised.

        GPUs that its node did not count as free are its own to have back, as `can_wake` says. Those counted
        may be its own, so that once too few of them are left it waits for the next tick. Also False when the
        budget is spent.
        """
        if self.within_budget(gpus) < 1:
            return False
        node = instance.node_id
        left = self._free.get(node, 0)
        if left < min(gpus, self._counted.get(node, 0)):
            return False
        if left and not self._moved(node, left, max(0, left - gpus)):
            return False
        self._spend(gpus)
        return True

    def _moved(self, node: str, before: int, after: int) -> bool:
        """Count a node anew; False: instances that start have been promised its GPUs."""
        counts = self._nodes.get(self._types.get(node, ""), {})
        if not counts.get(before):
            return False
        counts[before] -= 1
        if not counts[before]:
            del counts[before]
        if after:
            counts[after] = counts.get(after, 0) + 1
        self._free[node] = after
        return True

    def _spend(self, gpus: int) -> None:
        if self._budget is not None:
            self._budget -= gpus

    def take(self, gpus: int, gpu_type: str) -> bool:
        """Take this many on the fullest node that has them; False: no node has, or the budget is spent."""
        if self.within_budget(gpus) < 1:
            return False
        best: tuple[int, dict[int, int]] | None = None
        pools: Iterable[dict[int, int]] = (
            self._nodes.values() if not gpu_type else (self._nodes.get(gpu_type, {}),)
        )
        for counts in pools:
            fitting = min((free for free in counts if free >= gpus), default=None)
            if fitting is not None and (best is None or fitting < best[0]):
                best = (fitting, counts)
        if best is None:
            return False
        free, counts = best
        counts[free] -= 1
        if not counts[free]:
            del counts[free]
        if free > gpus:
            counts[free - gpus] = counts.get(free - gpus, 0) + 1
        self._spend(gpus)
        return True


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
