"""What a router measures of the instances that serve its queues: tokens per second now and later.

Reconstructed. While a queue stands, instances are full, so that the output tokens per second which they
report are their capacity. Of that, interactive requests get what interactive and mixed instances make, and
batch requests what arriving interactive ones leave of mixed and batch instances. An instance that loads is
capacity from the moment at which it is expected to be ready, slots that are all free included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from chiron.policy.fleet.throughput import ThroughputCurve
from chiron.policy.snapshots import FleetInstance
from chiron.policy.waiting import LaterCapacity
from chiron.policy.words import Phase, RequestClass, Role

_FULL = 0.9
_BLOCK_S = 30.0
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
    tokens_per_s: float
    """Output tokens per second over the last second; 0: nothing ran. Its node's last report."""
    ready_in_s: float = 0.0
    """Expected time until it serves; 0: it does. The routing table."""


@dataclass(frozen=True, slots=True)
class _Full:
    """Discounted sums over the time in which an instance was full."""

    rate: float = 0.0
    running: float = 0.0
    weight: float = 0.0

    def after(self, rate: float, running: int, keep: float) -> _Full:
        return _Full(
            self.rate * keep + rate * (1 - keep),
            self.running * keep + running * (1 - keep),
            self.weight * keep + 1 - keep,
        )


@dataclass(frozen=True, slots=True)
class QueueCapacity:
    """What serves one queue, in output tokens per second."""

    tokens_per_s: float
    later: tuple[LaterCapacity, ...] = ()
    noise: float = 0.0
    """Variance, per second, of the work that others take away meanwhile, in tokens²/s."""
    drift: float = 0.0
    """Standard error of what they take away on average, in tokens per second."""


class ServingRates:
    """One model's instances over time. Bounded by the number of instances; O(instances) per call."""

    def __init__(self, half_life_s: float = 15.0, arrivals_half_life_s: float = 300.0) -> None:
        """Half-lives of what was measured, in seconds, > 0. Raises ValueError naming the argument."""
        for name, value in (("half_life_s", half_life_s), ("arrivals_half_life_s", arrivals_half_life_s)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._half_life_s = half_life_s
        self._arrivals_half_life_s = arrivals_half_life_s
        # Instance → what it made while full.
        self._full: dict[str, _Full] = {}
        self._typical = _Full()
        self._curve = ThroughputCurve()
        # Blocks of arrivals: those under way, and discounted weight, sum and sum of squares of their rates.
        self._block = (0.0, 0.0)
        self._blocks = (0.0, 0.0, 0.0)

    def observe(
        self, instances: Iterable[ServingInstance], arrived_interactive: int, interval_s: float
    ) -> None:
        """Learn from an interval: the load at its end, and the interactive requests that came in it."""
        keep = 0.5 ** (interval_s / self._half_life_s)
        instances = list(instances)
        curve = self._curve
        for instance in instances:
            if instance.tokens_per_s > 0:
                curve.see(_as_report(instance))
        curve.learn(interval_s)
        before, self._full = self._full, {}
        for instance in instances:
            known = before.get(instance.instance_id)
            if instance.tokens_per_s > 0 and instance.running >= _FULL * instance.batch_size:
                rate = instance.tokens_per_s
                known = (known or _Full()).after(rate, instance.running, keep)
                self._typical = self._typical.after(rate, instance.running, keep)
            if known is not None:
                self._full[instance.instance_id] = known
        self._arrive(arrived_interactive, interval_s)

    def _arrive(self, arrived: int, interval_s: float) -> None:
        count, length_s = self._block
        count, length_s = count + arrived, length_s + interval_s
        if length_s >= _BLOCK_S:
            keep = 0.5 ** (length_s / self._arrivals_half_life_s)
            weight, total, squares = self._blocks
            rate = count / length_s
            self._blocks = weight * keep + 1, total * keep + rate, squares * keep + rate * rate
            count = length_s = 0.0
        self._block = count, length_s

    @property
    def interactive_per_s(self) -> float:
        """Interactive requests that arrive per second; 0 until measured."""
        weight, total, _ = self._blocks
        if not weight:
            count, length_s = self._block
            return count / length_s if length_s else 0.0
        return total / weight

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
        later.sort(key=lambda step: step.in_s)
        if request_class is RequestClass.INTERACTIVE:
            return QueueCapacity(now, tuple(later))
        now -= min(mixed, self.interactive_per_s * interactive_tokens)
        weight, total, squares = self._blocks
        if weight < 2:
            return QueueCapacity(now, tuple(later))
        variance = max(0.0, squares / weight - (total / weight) ** 2) * interactive_tokens**2
        return QueueCapacity(now, tuple(later), variance * _BLOCK_S, math.sqrt(variance / weight))

    def _rate(self, instance: ServingInstance) -> float:
        """Tokens per second with all slots taken."""
        by_curve = self._by_curve(instance.batch_size)
        if by_curve <= 0:
            return _PRESUMED_TOKENS_PER_SLOT_S * instance.batch_size
        full = self._full.get(instance.instance_id, self._typical)
        if not full.weight:
            return by_curve
        # Measured with as many requests, or nearly so; the curve bridges a change of the batch size.
        return full.rate / full.weight * by_curve / self._by_curve(full.running / full.weight)

    def _by_curve(self, running: float) -> float:
        gap_s = self._curve.itl_s(running)
        return running / gap_s if gap_s > 0 else 0.0


def _as_report(instance: ServingInstance) -> FleetInstance:
    return FleetInstance(
        instance.instance_id,
        "",
        instance.role,
        Phase.READY,
        instance.batch_size,
        instance.batch_size,
        running_interactive=instance.running,
        tokens_per_s=instance.tokens_per_s,
    )
