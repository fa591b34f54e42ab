"""For how long instances have held GPUs, by model and phase. Pure.

A GPU counts from the moment at which an instance is placed on it until its agent has reported it free, once
however many share it: for the one that is awake, else for those that sleep there in equal parts, so that the
models' times add up to the cluster's. A dead node's GPUs are nobody's. Times are the controller's monotonic
clock, in seconds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from chiron.policy.words import Phase
from chiron.store import InstanceRecord
from chiron.v1 import cluster_pb2
from services.global_controller.fleet import occupied_gpus
from services.global_controller.phases import phase_of

_FIELDS = {
    Phase.LOADING: "loading",
    Phase.READY: "serving",
    Phase.DRAINING: "draining",
    Phase.SLEEPING: "sleeping",
}
_Key = tuple[str, Phase]


class GpuTime:
    """Adds up over one controller's reign; every change must be shown to it as it comes."""

    def __init__(self, now: float) -> None:
        """Nothing is held before `now`."""
        self._began = self._since = now
        self._held: Mapping[_Key, float] = {}
        """GPUs that a model's instances of one phase hold now."""
        self._seconds: dict[_Key, float] = defaultdict(float)

    def update(self, instances: Iterable[InstanceRecord], dead: Collection[str], now: float) -> None:
        """Who holds what has changed: counts up to now.

        Args:
            instances: all that there are, on record or not.
            dead: ids of the nodes that count as dead.
            now: the time.
        """
        self._settle(now)
        self._held = _held(one for one in instances if one.node_id not in dead)

    def of(self, model: str, now: float) -> cluster_pb2.GpuSeconds:
        """One model's."""
        self._settle(now)
        return self._message((key for key in self._seconds if key[0] == model), now)

    def all(self, now: float) -> cluster_pb2.GpuSeconds:
        """All models' together, those that are gone included."""
        self._settle(now)
        return self._message(self._seconds, now)

    def _settle(self, now: float) -> None:
        for key, gpus in self._held.items():
            self._seconds[key] += gpus * (now - self._since)
        self._since = now

    def _message(self, keys: Iterable[_Key], now: float) -> cluster_pb2.GpuSeconds:
        told = cluster_pb2.GpuSeconds(over_s=now - self._began)
        for key in keys:
            field = _FIELDS[key[1]]
            setattr(told, field, getattr(told, field) + self._seconds[key])
        return told


def _held(instances: Iterable[InstanceRecord]) -> Mapping[_Key, float]:
    holders: dict[tuple[str, int], list[_Key]] = defaultdict(list)
    for record in instances:
        phase = phase_of(record)
        if phase is not None:
            for index in occupied_gpus(record):
                holders[record.node_id, index].append((record.model, phase))
    held: dict[_Key, float] = defaultdict(float)
    for keys in holders.values():
        awake = [key for key in keys if key[1] is not Phase.SLEEPING] or keys
        for key in awake:
            held[key] += 1 / len(awake)
    return held
