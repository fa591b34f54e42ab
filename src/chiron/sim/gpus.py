"""Who holds which GPU, for how long, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chiron.policy.placement import NodeGpus, Want, place
from chiron.sim.settings import GpuType, InvalidSettingError, SimModel, SimSettings

Claim = tuple[str, tuple[int, ...]]
"""A node and the indexes of GPUs there."""


class Gpus:
    """All GPUs of the cluster. A GPU has one holder at a time: asserted at every change."""

    def __init__(self, settings: SimSettings) -> None:
        self._types = {kind.name: kind for kind in settings.gpu_types}
        self._first = settings.gpu_types[0]
        self._budget = settings.gpu_budget
        self.nodes: dict[str, GpuType] = {
            f"{kind.name}-{number}": kind for kind in settings.gpu_types for number in range(kind.nodes)
        }
        self.down: set[str] = set()
        """Nodes that have failed and are not repaired yet."""
        self._holders: dict[tuple[str, int], str] = {}
        self._held_by_type = dict.fromkeys(self._types, 0)
        self._since_s = 0.0
        self._gpu_seconds = dict.fromkeys(self._types, 0.0)
        self.peak = 0

    @property
    def held(self) -> int:
        """GPUs that instances hold now."""
        return len(self._holders)

    @property
    def gpu_hours(self) -> float:
        """GPU-hours since the start or the last reset, as of the last settling."""
        return sum(self._gpu_seconds.values()) / 3600

    @property
    def cost(self) -> float:
        """Price of the same."""
        return sum(
            seconds / 3600 * self._types[name].price_per_gpu_hour
            for name, seconds in self._gpu_seconds.items()
        )

    def kind_of(self, model: SimModel) -> GpuType:
        """GPU type that a model's instances run on."""
        return self._types[model.gpu_type] if model.gpu_type else self._first

    def settle(self, now: float) -> None:
        """Count GPU time up to now."""
        for name, held in self._held_by_type.items():
            self._gpu_seconds[name] += held * (now - self._since_s)
        self._since_s = now

    def reset(self, now: float) -> None:
        """Forget the GPU time and the peak so far."""
        self._since_s = now
        self._gpu_seconds = dict.fromkeys(self._types, 0.0)
        self.peak = self.held

    def find(self, model: SimModel, on_nodes: Iterable[str]) -> Claim | None:
        """Where the model's next instance goes by the placement policy; None: nowhere, or over the budget."""
        gpus = model.profile.gpus
        if self._budget and self.held + gpus > self._budget:
            return None
        kind = self.kind_of(model)
        counts: dict[str, int] = {}
        for node in on_nodes:
            counts[node] = counts.get(node, 0) + 1
        nodes = [self._node(name) for name, of in self.nodes.items() if of is kind]
        plan = place(nodes, [Want(model.name, gpus, 1, counts)])
        if not plan.placements:
            return None
        return plan.placements[0].node_id, plan.placements[0].gpu_indexes

    def take(self, claim: Claim, instance_id: str, now: float) -> None:
        """Give GPUs to an instance."""
        node, indexes = claim
        self.settle(now)
        for index in indexes:
            holder = self._holders.get((node, index))
            if holder is not None:
                raise AssertionError(f"GPU {index} of {node} is held by {holder}, {instance_id} wants it")
            self._holders[node, index] = instance_id
        self._held_by_type[self.nodes[node].name] += len(indexes)
        self.peak = max(self.peak, self.held)

    def release(self, claim: Claim, instance_id: str, now: float) -> None:
        """Take GPUs back from an instance."""
        node, indexes = claim
        self.settle(now)
        for index in indexes:
            holder = self._holders.pop((node, index), None)
            if holder != instance_id:
                raise AssertionError(
                    f"GPU {index} of {node} is held by {holder}, {instance_id} gives it back"
                )
        self._held_by_type[self.nodes[node].name] -= len(indexes)

    def free(self) -> dict[str, int]:
        """GPUs by live node that nobody holds."""
        free = {node: kind.gpus_per_node for node, kind in self.nodes.items() if node not in self.down}
        for node, _ in self._holders:
            if node in free:
                free[node] -= 1
        return free

    def _node(self, name: str) -> NodeGpus:
        total = self.nodes[name].gpus_per_node
        used = frozenset(index for index in range(total) if (name, index) in self._holders)
        return NodeGpus(name, frozenset(range(total)), used, live=name not in self.down)


def check_initial(settings: SimSettings, models: Sequence[SimModel]) -> None:
    """Raise InvalidSettingError when the budget has no room for the initial instances."""
    wanted = sum(sum(model.initial.values()) * model.profile.gpus for model in models)
    if settings.gpu_budget and wanted > settings.gpu_budget:
        raise InvalidSettingError(
            "initial", f"instances need {wanted} GPUs, gpu_budget is {settings.gpu_budget}"
        )
