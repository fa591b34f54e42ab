"""What a router measures of the instances that serve its queues: tokens per second now and later.

Reconstructed. Output tokens per second of an instance are the requests that run over the time between a
request's tokens; both are in every load message. While a queue stands, instances are full, so that what they
make then is their capacity. Of that, interactive requests get what interactive and mixed instances make, and
batch requests what arriving interactive ones leave of mixed and batch instances. An instance that loads is
capacity from the moment at which it is expected to be ready, slots that are all free included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chiron.policy.fleet.throughput import ThroughputCurve
from chiron.policy.snapshots import FleetInstance
from chiron.policy.waiting import LaterCapacity
from chiron.policy.words import Phase, RequestClass, Role

_FULL = 0.9
_PRESUMED_TOKENS_PER_SLOT_S = 10.0


@dataclass(frozen=True, slots=True)
class ServingInstance:
    """One instance that serves or loads, as its router knows it."""

    instance_id: str
    role: Role
    batch_size: int
    """In requests. The worker's last load message; of a loading one, what it starts with."""
    running: int
    """Requests in its batch. The worker's last load message."""
    itl_s: float
    """Mean time between tokens over the last second; 0: nothing ran. The worker's last load message."""
    ready_in_s: float = 0.0
    """Expected time until it serves; 0: it does. The routing table."""


@dataclass(frozen=True, slots=True)
class QueueCapacity:
    """What serves one queue, in output tokens per second."""

    tokens_per_s: float
    later: tuple[LaterCapacity, ...] = ()


class ServingRates:
    """One model's instances over time. Bounded by the number of instances; O(instances) per call."""

    def __init__(self, half_life_s: float = 15.0, arrivals_half_life_s: float = 60.0) -> None:
        """Half-lives of what was measured, in seconds, > 0. Raises ValueError naming the argument."""
        for name, value in (("half_life_s", half_life_s), ("arrivals_half_life_s", arrivals_half_life_s)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._half_life_s = half_life_s
        self._arrivals_half_life_s = arrivals_half_life_s
        # Instance → (tokens per second and slot while full, weight).
        self._full: dict[str, tuple[float, float]] = {}
        self._typical = (0.0, 0.0)
        self._curve = ThroughputCurve()
        self._arrivals = (0.0, 0.0)

    def observe(
        self, instances: Iterable[ServingInstance], arrived_interactive: int, interval_s: float
    ) -> None:
        """Learn from an interval: the load at its end, and the interactive requests that came in it."""
        keep = 0.5 ** (interval_s / self._half_life_s)
        curve = self._curve
        before, self._full = self._full, {}
        for instance in instances:
            known = before.get(instance.instance_id)
            if instance.itl_s > 0:
                curve.see(_as_report(instance))
            if instance.itl_s > 0 and instance.running >= _FULL * instance.batch_size:
                rate = instance.running / instance.itl_s / instance.batch_size
                known = _blend(known or (0.0, 0.0), rate, keep)
                self._typical = _blend(self._typical, rate, keep)
            if known is not None:
                self._full[instance.instance_id] = known
        curve.learn(interval_s)
        keep = 0.5 ** (interval_s / self._arrivals_half_life_s)
        self._arrivals = _blend(self._arrivals, arrived_interactive / interval_s, keep)

    @property
    def interactive_per_s(self) -> float:
        """Interactive requests that arrive per second; 0 until measured."""
        total, weight = self._arrivals
        return total / weight if weight else 0.0

    def capacity(
        self, instances: Iterable[ServingInstance], request_class: RequestClass, interactive_tokens: float
    ) -> QueueCapacity:
        """What serves the queue of a class. interactive_tokens: mean output of an interactive request."""
        other = Role.BATCH if request_class is RequestClass.INTERACTIVE else Role.INTERACTIVE
        now = mixed = 0.0
        later = []
        for instance in instances:
            if instance.role is other:
                continue
            rate = self._rate(instance)
            if instance.ready_in_s > 0:
                later.append(LaterCapacity(instance.ready_in_s, rate, instance.batch_size))
                continue
            now += rate
            if instance.role is Role.MIXED:
                mixed += rate
        if request_class is RequestClass.BATCH:
            now -= min(mixed, self.interactive_per_s * interactive_tokens)
        later.sort(key=lambda step: step.in_s)
        return QueueCapacity(now, tuple(later))

    def _rate(self, instance: ServingInstance) -> float:
        """Tokens per second with all slots taken."""
        total, weight = self._full.get(instance.instance_id, self._typical)
        if weight:
            return total / weight * instance.batch_size
        # None was full yet.
        return self._curve.tokens_per_s(instance.batch_size) or (
            _PRESUMED_TOKENS_PER_SLOT_S * instance.batch_size
        )


def _as_report(instance: ServingInstance) -> FleetInstance:
    return FleetInstance(
        instance.instance_id,
        "",
        instance.role,
        Phase.READY,
        instance.batch_size,
        instance.batch_size,
        running_interactive=instance.running,
        tokens_per_s=instance.running / instance.itl_s,
    )


def _blend(known: tuple[float, float], value: float, keep: float) -> tuple[float, float]:
    total, weight = known
    return total * keep + value * (1 - keep), weight * keep + (1 - keep)
