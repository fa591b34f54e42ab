"""Which instance owns which GPU, what sleepers keep of it, for how long, and what that costs.

At most one awake instance owns a GPU; loading, waking and draining ones are awake. An instance that sleeps
gives up its GPUs but for a residual share of their memory, and a share of its node's host memory; others may
load or wake there as far as that leaves them room. A GPU counts as held, once, while anybody has a part of
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chiron.policy.placement import NodeGpus, Want, place
from chiron.policy.words import Phase
from chiron.sim.settings import GpuType, InvalidSettingError, SimModel, SimSettings

if TYPE_CHECKING:
    from chiron.sim.instance import SimInstance

Claim = tuple[str, tuple[int, ...]]
"""A node and the indexes of GPUs there."""
_ROUNDING = 1e-9


@dataclass(slots=True)
class _Gpu:
    owner: str = ""
    """The awake instance; "": none."""
    residues: dict[str, float] = field(default_factory=dict)
    """Share of the memory that each sleeper keeps."""

    @property
    def held(self) -> bool:
        return bool(self.owner or self.residues)

    def room(self, share: float, instance_id: str = "") -> bool:
        """Whether an instance that takes this share of the memory may own it now."""
        if self.owner or not self.residues:
            return not self.owner
        others = sum(kept for sleeper, kept in self.residues.items() if sleeper != instance_id)
        return others + share <= 1 + _ROUNDING


class Gpus:
    """All GPUs of the cluster. That one awake instance owns a GPU at a time is asserted at every change."""

    def __init__(self, settings: SimSettings) -> None:
        self._types = {kind.name: kind for kind in settings.gpu_types}
        self._first = settings.gpu_types[0]
        self._budget = settings.gpu_budget
        self._widest_share = max(model.gpu_memory_share for model in settings.models)
        self.nodes: dict[str, GpuType] = {
            f"{kind.name}-{number}": kind for kind in settings.gpu_types for number in range(kind.nodes)
        }
        self.down: set[str] = set()
        """Nodes that have failed and are not repaired yet."""
        self._gpus: dict[str, tuple[_Gpu, ...]] = {
            node: tuple(_Gpu() for _ in range(kind.gpus_per_node)) for node, kind in self.nodes.items()
        }
        self._sleepers: set[str] = set()
        self._host_gb: dict[str, dict[str, float]] = {node: {} for node in self.nodes}
        self._held_by_type = dict.fromkeys(self._types, 0)
        self._since_s = 0.0
        self._gpu_seconds = dict.fromkeys(self._types, 0.0)
        self.peak = 0

    @property
    def held(self) -> int:
        """GPUs that instances hold now, asleep or awake; one that several share counts once."""
        return sum(self._held_by_type.values())

    @property
    def gpu_hours(self) -> float:
        """GPU-hours since the start or the last reset, as of the last settling."""
        return sum(self._gpu_seconds.values()) / 3600

    @property
    def cost(self) -> float:
        """Price of the same."""
        return sum(
            seconds / 3600 * (self._types[name].price_per_gpu_hour or 0.0)
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
        """Where the model's next instance goes by the placement policy; None: nowhere, or over the budget.

        GPUs that only sleepers hold come first: they are paid for already.
        """
        kind = self.kind_of(model)
        counts: dict[str, int] = {}
        for node in on_nodes:
            counts[node] = counts.get(node, 0) + 1
        want = Want(model.name, model.profile.gpus, 1, counts)
        names = [name for name, of in self.nodes.items() if of is kind]
        for shared_only in (True, False) if self._sleepers else (False,):
            plan = place([self._node(name, model, shared_only) for name in names], [want])
            if plan.placements:
                claim = plan.placements[0].node_id, plan.placements[0].gpu_indexes
                further = sum(not gpu.held for gpu in self._of(claim))
                if not self._budget or self.held + further <= self._budget:
                    return claim
        return None

    def take(self, claim: Claim, instance_id: str, model: SimModel, now: float) -> None:
        """Give GPUs to an instance that starts or wakes; one that fell asleep just now still has them."""
        gpus = self._of(claim)
        self._host_gb[claim[0]].pop(instance_id, None)
        if all(gpu.owner == instance_id for gpu in gpus):
            return
        self.settle(now)
        for index, gpu in zip(claim[1], gpus, strict=True):
            if not gpu.room(model.gpu_memory_share, instance_id):
                raise AssertionError(
                    f"GPU {index} of {claim[0]} is owned by {gpu.owner or 'nobody'}, sleepers keep "
                    f"{gpu.residues}, {instance_id} wants it"
                )
        self._drop(claim, instance_id)
        for gpu in gpus:
            self._held_by_type[self.nodes[claim[0]].name] += not gpu.held
            gpu.owner = instance_id
        self.peak = max(self.peak, self.held)

    def doze(self, claim: Claim, instance_id: str, model: SimModel, now: float) -> None:
        """Leave to an instance that sleeps what it keeps, and its GPUs to others."""
        self.settle(now)
        self._check_owner(claim, instance_id)
        for gpu in self._of(claim):
            gpu.owner = ""
            gpu.residues[instance_id] = model.sleep_residual_share
        self._sleepers.add(instance_id)

    def release(self, claim: Claim, instance_id: str, now: float) -> None:
        """Take back from an instance all that it has, awake or asleep."""
        self.settle(now)
        asleep = all(instance_id in gpu.residues for gpu in self._of(claim))
        if not asleep:
            self._check_owner(claim, instance_id)
            for gpu in self._of(claim):
                gpu.owner = ""
                self._held_by_type[self.nodes[claim[0]].name] -= not gpu.held
        self._drop(claim, instance_id)

    def may_wake(self, claim: Claim, instance_id: str, model: SimModel) -> bool:
        """Whether no awake instance owns a sleeper's GPUs, and other sleepers leave it room."""
        return all(
            gpu.owner == instance_id or gpu.room(model.gpu_memory_share, instance_id)
            for gpu in self._of(claim)
        )

    def may_sleep(self, node: str, model: SimModel) -> bool:
        """Whether the model's instances may sleep, and the node's host memory has room for one more."""
        if not model.sleep_level:
            return False
        limit = self.nodes[node].host_memory_gb
        if model.sleep_level != 1 or not limit:
            return True
        return sum(self._host_gb[node].values()) + model.sleep_host_gb <= limit + _ROUNDING

    def set_aside(self, node: str, instance_id: str, model: SimModel) -> None:
        """Keep host memory for an instance that is told to sleep."""
        if model.sleep_level == 1:
            self._host_gb[node][instance_id] = model.sleep_host_gb

    def free(self) -> dict[str, int]:
        """GPUs by live node that no awake instance owns and that have room for an instance of any model."""
        return {
            node: sum(gpu.room(self._widest_share) for gpu in gpus)
            for node, gpus in self._gpus.items()
            if node not in self.down
        }

    def held_by(self, instances: Mapping[str, SimInstance]) -> dict[Phase, float]:
        """GPUs by the phase of the instance that has them; see TimelinePoint."""
        held: dict[Phase, float] = {}
        for gpus in self._gpus.values():
            for gpu in gpus:
                holders = [gpu.owner] if gpu.owner else list(gpu.residues)
                for key in holders:
                    phase = instances[key].phase if key in instances else Phase.DRAINING
                    held[phase] = held.get(phase, 0.0) + 1 / len(holders)
        return held

    def owned(self) -> dict[tuple[str, int], str]:
        """The awake instance of each GPU that has one, by node and index."""
        return {
            (node, index): gpu.owner
            for node, gpus in self._gpus.items()
            for index, gpu in enumerate(gpus)
            if gpu.owner
        }

    def _of(self, claim: Claim) -> list[_Gpu]:
        gpus = self._gpus[claim[0]]
        return [gpus[index] for index in claim[1]]

    def _check_owner(self, claim: Claim, instance_id: str) -> None:
        for index, gpu in zip(claim[1], self._of(claim), strict=True):
            if gpu.owner != instance_id:
                raise AssertionError(
                    f"GPU {index} of {claim[0]} is owned by {gpu.owner or 'nobody'}, "
                    f"{instance_id} gives it back"
                )

    def _drop(self, claim: Claim, instance_id: str) -> None:
        """Take away what an instance keeps in its sleep."""
        for gpu in self._of(claim):
            if gpu.residues.pop(instance_id, None) is not None:
                self._held_by_type[self.nodes[claim[0]].name] -= not gpu.held
        self._host_gb[claim[0]].pop(instance_id, None)
        self._sleepers.discard(instance_id)

    def _node(self, name: str, model: SimModel, shared_only: bool) -> NodeGpus:
        gpus = self._gpus[name]
        used = frozenset(
            index
            for index, gpu in enumerate(gpus)
            if (shared_only and not gpu.residues) or not gpu.room(model.gpu_memory_share)
        )
        return NodeGpus(name, frozenset(range(len(gpus))), used, live=name not in self.down)


def check_initial(settings: SimSettings, models: Sequence[SimModel]) -> None:
    """Raise InvalidSettingError when the budget has no room for the initial instances."""
    wanted = sum(sum(model.initial.values()) * model.profile.gpus for model in models)
    if settings.gpu_budget and wanted > settings.gpu_budget:
        raise InvalidSettingError(
            "initial", f"instances need {wanted} GPUs, gpu_budget is {settings.gpu_budget}"
        )
