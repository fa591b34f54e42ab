"""From the number of replicas that an autoscaler of replicas wants to actions on instances.

Other systems count replicas of one kind; here these are mixed instances. Loading ones count, draining ones do
not. What goes first is what has not become ready yet, the newest first, as in Kubernetes, and then the least
loaded one, which is kinder than what Kubernetes would choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chiron.policy.decisions import Action, Retire, Start
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role


@dataclass(frozen=True, slots=True)
class Replicas:
    """A model's replicas."""

    ready: tuple[FleetInstance, ...]
    loading: tuple[FleetInstance, ...]

    @property
    def count(self) -> int:
        """Those that are there or will be."""
        return len(self.ready) + len(self.loading)


def replicas_of(model: ModelFleet) -> Replicas:
    """What serves or loads."""
    return Replicas(
        tuple(each for each in model.instances if each.phase is Phase.READY),
        tuple(each for each in model.instances if each.phase is Phase.LOADING),
    )


def most_replicas(model: ModelFleet, snapshot: FleetSnapshot) -> int:
    """The model's own limit, or what its instances and all GPUs that are free now come to."""
    free = sum(gpus // model.gpus_per_instance for gpus in snapshot.free_gpus.values())
    if snapshot.gpu_budget:
        held = sum(
            other.gpus_per_instance
            for other in snapshot.models
            for each in other.instances
            if each.phase is not Phase.SLEEPING
        )
        free = min(free, max(0, snapshot.gpu_budget - held) // model.gpus_per_instance)
    there = replicas_of(model).count + free
    return min(there, model.max_instances or there)


def toward(model: ModelFleet, wanted: int, reason: str, numbers: Mapping[str, float]) -> tuple[Action, ...]:
    """What brings the model to so many replicas."""
    replicas = replicas_of(model)
    missing = wanted - replicas.count
    if missing > 0:
        return (Start(model.name, Role.MIXED, missing, reason, numbers),)
    newest_first = sorted(replicas.loading, key=lambda each: (each.phase_age_s, each.instance_id))
    least_first = sorted(replicas.ready, key=lambda each: (requests_at(each), each.instance_id))
    leaving: Sequence[FleetInstance] = [*newest_first, *least_first][: -missing or 0]
    return tuple(Retire(model.name, each.instance_id, reason, numbers) for each in leaving)


def requests_at(instance: FleetInstance) -> int:
    """Requests that run or wait there, of both classes."""
    waiting = instance.waiting_interactive + instance.waiting_batch
    return instance.running_interactive + instance.running_batch + waiting


def waiting_in_routers(model: ModelFleet, batch_weight: float) -> float:
    """Requests that wait outside engines; a batch request counts as `batch_weight` of one."""
    backlog = sum(group.requests for group in model.backlog)
    return model.traffic.queued_interactive + batch_weight * backlog


def waiting_in(instance: FleetInstance, batch_weight: float) -> float:
    """The same of its engine's queue."""
    return instance.waiting_interactive + batch_weight * instance.waiting_batch


def check_positive(settings: object, *names: str) -> None:
    """Raises ValueError for a field that is not a number above 0."""
    for name in names:
        if not 0 < getattr(settings, name) < math.inf:
            raise ValueError(f"{name}: must be a number above 0, not {getattr(settings, name):g}")


def check_not_negative(settings: object, *names: str) -> None:
    """Raises ValueError for a field that is not a number of at least 0."""
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:
            raise ValueError(f"{name}: must be a number >= 0, not {getattr(settings, name):g}")
