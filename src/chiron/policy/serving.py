"""What a router measures of the instances that serve its queues: tokens per second now and later.

Reconstructed. While a queue stands, instances are full, so that the output tokens per second which they
report are their capacity. Of that, interactive requests get what interactive and mixed instances make, and
batch requests what arriving interactive ones leave of mixed and batch instances: as many as have come of
late at first, and as many as usual later. An instance that loads is capacity from the moment at which it is
expected to be ready, slots that are all free included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from chiron.policy.fleet.throughput import ThroughputCurve
from chiron.policy.snapshots import FleetInstance
from chiron.policy.waiting import LaterCapacity
from chiron.policy.words import Phase, RequestClass, Role

_FULL = 0.9
_STEADY = 0.05
"""An interval counts when the requests in the batch changed by at most this share: what a batch that fills up
or runs empty has made and how many it holds do not belong together."""
_BLOCK_S = 30.0
_KEPT = 0.8
"""How much of what arrivals are off their mean is left after a block. From the benchmark's runs on seeds that
are not reported: learned per run it was no better."""
_LOOKED_AHEAD = (1, 2, 4, 8)
"""Blocks ahead at which expected arrivals are looked at; from the last on they are the mean."""
_PRESUMED_TOKENS_PER_SLOT_S = 10.0
_DRAIN_HALF_LIFE_S = 60.0
_PRESUMED_S = 10.0
"""Time that the share presumed at first, all, counts as, in seconds."""
_PRESUMED_FULL = 0.05
_SETTLED_S = 20.0
"""For how long, in seconds, an instance must have been full until what it makes teaches in full. At first it
makes less, while it reads prompts, or more, while its requests are young and their KV caches small. From the
benchmark's runs on seeds that are not reported."""
_TYPICAL_HALF_LIFE_S = 900.0
"""Of what is usual for all instances, in seconds, each second of each instance counted."""
_OTHERS = 0.5
"""What others made while full counts as so much of the weight of what an instance made itself."""


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
    """Tokens per second over those that the curve tells, and """
    expected: float = 0.0

    def after(self, ratio: float, keep: float) -> _Full:
        return _Full(self.rate * keep + ratio * (1 - keep), self.expected * keep + 1 - keep)


@dataclass(frozen=True, slots=True)
class QueueCapacity:
    """What serves one queue, in output tokens per second."""

    tokens_per_s: float
    later: tuple[LaterCapacity, ...] = ()
    noise: float = 0.0
    """Variance, per second, of the work that others take away meanwhile, in tokens²/s."""
    drift: float = 0.0
    """Standard error of what they take away on average, in tokens per second."""
    each: Mapping[str, float] = field(default_factory=dict)
    """Instance that serves now → its share of tokens_per_s, before interactive requests take theirs."""


class ServingRates:
    """One model's instances over time. Bounded by the number of instances; O(instances) per call."""

    def __init__(self, half_life_s: float = 300.0, arrivals_half_life_s: float = 900.0) -> None:
        """Half-lives of what was measured, in seconds, > 0. Raises ValueError naming the argument."""
        for name, value in (("half_life_s", half_life_s), ("arrivals_half_life_s", arrivals_half_life_s)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self._half_life_s = half_life_s
        self._arrivals_half_life_s = arrivals_half_life_s
        # Instance → what it made while full.
        self._full: dict[str, _Full] = {}
        self._typical = _Full()
        # Instance → for how long it has been full, in seconds.
        self._full_s: dict[str, float] = {}
        # Instance → requests in its batch at the end of the interval before.
        self._running: dict[str, int] = {}
        self._curve = ThroughputCurve()
        # Blocks of arrivals: the one under way, the rate of the one before, and discounted weight, sum and
        # sum of squares of all their rates.
        self._block = (0.0, 0.0)
        self._block_before: float | None = None
        self._blocks = (0.0, 0.0, 0.0)
        # Output tokens of what was sent while interactive requests waited, and what full instances make.
        self._admitted = (0.0, 0.0)

    def observe(
        self, instances: Iterable[ServingInstance], arrived_interactive: int, interval_s: float
    ) -> None:
        """Learn from an interval: the load at its end, and the interactive requests that came in it."""
        instances = list(instances)
        curve = self._curve
        steady = {each.instance_id for each in instances if each.tokens_per_s > 0 and self._steady(each)}
        self._running = {each.instance_id: each.running for each in instances}
        for instance in instances:
            if instance.instance_id in steady:
                curve.see(_as_report(instance))
        curve.learn(interval_s)
        before, self._full = self._full, {}
        before_s, self._full_s = self._full_s, {}
        for instance in instances:
            known = before.get(instance.instance_id)
            if instance.instance_id in steady and instance.running >= _FULL * instance.batch_size:
                full_s = before_s.get(instance.instance_id, 0.0) + interval_s
                self._full_s[instance.instance_id] = full_s
                counts_s = min(1.0, full_s / _SETTLED_S) * interval_s
                ratio = instance.tokens_per_s / self._by_curve(instance.running)
                known = (known or _Full()).after(ratio, 0.5 ** (counts_s / self._half_life_s))
                self._typical = self._typical.after(ratio, 0.5 ** (counts_s / _TYPICAL_HALF_LIFE_S))
            if known is not None:
                self._full[instance.instance_id] = known
        self._arrive(arrived_interactive, interval_s)
        keep = 0.5 ** (interval_s / _DRAIN_HALF_LIFE_S)
        self._admitted = self._admitted[0] * keep, self._admitted[1] * keep

    def _steady(self, instance: ServingInstance) -> bool:
        before = self._running.get(instance.instance_id, 0)
        return abs(instance.running - before) <= _STEADY * max(instance.running, before)

    def admitted(self, instances: Iterable[ServingInstance], tokens: float, interval_s: float) -> None:
        """Learn from an interval throughout which interactive requests waited.

        tokens: expected output tokens of the interactive requests that were sent to instances. The queue is
        drained at the pace of what is sent, and not of what a full batch makes: batches fill up at the pace
        of prefill, and one that is larger than a limit just lowered makes most and takes nobody in.
        """
        most = sum(self._rate(each) for each in instances if each.role is not Role.BATCH)
        done, possible = self._admitted
        self._admitted = done + tokens, possible + most * interval_s

    def _drained(self, most: float) -> float:
        """Share of what full instances would make at which the interactive queue is drained.

        1 where none serves: what has held up a queue so far says nothing of those that come.
        """
        if most <= 0:
            return 1.0
        done, possible = self._admitted
        presumed = most * _PRESUMED_S
        return (done + presumed) / (possible + presumed)

    def _arrive(self, arrived: int, interval_s: float) -> None:
        count, length_s = self._block
        count, length_s = count + arrived, length_s + interval_s
        if length_s >= _BLOCK_S:
            keep = 0.5 ** (length_s / self._arrivals_half_life_s)
            weight, total, squares = self._blocks
            self._block_before = rate = count / length_s
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

    def _expected_arrivals(self) -> list[tuple[float, float]]:
        """Interactive requests per second from now on: (in how many seconds, rate), in the order of time."""
        mean = self.interactive_per_s
        if self._block_before is None:
            return [(0.0, mean)]
        count, length_s = self._block
        lately = (self._block_before * _BLOCK_S + count) / (_BLOCK_S + length_s)
        steps, at_s = [], 0.0
        for blocks in _LOOKED_AHEAD:
            steps.append((at_s, mean + _KEPT**blocks * (lately - mean)))
            at_s = (blocks + 0.5) * _BLOCK_S
        return [*steps, (at_s, mean)]

    def capacity(
        self, instances: Iterable[ServingInstance], request_class: RequestClass, interactive_tokens: float
    ) -> QueueCapacity:
        """What serves the queue of a class. interactive_tokens: mean output of an interactive request."""
        other = Role.BATCH if request_class is RequestClass.INTERACTIVE else Role.INTERACTIVE
        now = mixed = 0.0
        later = []
        serving = {}
        rated = [(each, self._rate(each)) for each in instances]
        able = [pair for pair in rated if pair[0].role is not other]
        share = 1.0
        if request_class is RequestClass.INTERACTIVE:
            share = self._drained(sum(rate for each, rate in able if each.ready_in_s <= 0))
        for instance, full_rate in able:
            rate = full_rate * share
            if instance.ready_in_s > 0:
                later.append(LaterCapacity(instance.ready_in_s, rate, instance.batch_size))
                continue
            serving[instance.instance_id] = rate
            now += rate
            if instance.role is Role.MIXED:
                mixed += rate
        noise = drift = 0.0
        if request_class is RequestClass.BATCH:
            # Interactive requests take mixed instances only when those of their own are full.
            others = sum(rate for each, rate in rated if each.role is other and each.ready_in_s <= 0)
            taken = 0.0
            for in_s, rate in self._expected_arrivals():
                takes = min(mixed, max(0.0, rate * interactive_tokens - others))
                if in_s > 0:
                    later.append(LaterCapacity(in_s, taken - takes))
                else:
                    now -= takes
                taken = takes
            weight, total, squares = self._blocks
            if weight >= 2:
                variance = max(0.0, squares / weight - (total / weight) ** 2) * interactive_tokens**2
                noise, drift = variance * _BLOCK_S, math.sqrt(variance / weight)
        later.sort(key=lambda step: step.in_s)
        return QueueCapacity(now, tuple(later), noise, drift, serving)

    def _rate(self, instance: ServingInstance) -> float:
        """Tokens per second with all slots taken."""
        by_curve = self._by_curve(instance.batch_size)
        if by_curve <= 0:
            return _PRESUMED_TOKENS_PER_SLOT_S * instance.batch_size
        # What instances made when as full, of what the curve tells, which bridges a change of the batch size;
        # an instance that was full for a moment only is taken to be like the others.
        typical = self._typical
        usual = _PRESUMED_FULL + typical.rate
        expected = _PRESUMED_FULL + typical.expected
        known = self._full.get(instance.instance_id, _Full())
        like_others = _OTHERS * usual / expected
        return by_curve * (known.rate + like_others) / (known.expected + _OTHERS)

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
