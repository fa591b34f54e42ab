"""The HorizontalPodAutoscaler of Kubernetes: its arithmetic and its default behaviour.

After the Kubernetes documentation ("Horizontal Pod Autoscaling") and the controller's sources
(pkg/controller/podautoscaler: replica_calculator.go, horizontal.go): every 15 s desired = ceil(replicas ×
metric / target), nothing within a tolerance of 10 %, scale-down to the highest recommendation of the last
300 s, scale-up by 4 pods or 100 % in 15 s, whichever is more, scale-down by up to 100 % in 15 s. A pod that
loads has no metric yet: it counts as idle when that would add pods, and as on target when it would remove
some, and a change of direction by this means no change.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.sim.baselines.replicas import check_not_negative, check_positive

_ROUNDING = 1e-9
"""Kubernetes computes with whole thousandths, so that a quotient which is whole stays whole."""


@dataclass(frozen=True, slots=True)
class HpaSettings:
    """What every HorizontalPodAutoscaler is set to. ValueError by field."""

    sync_s: float = 15.0
    """Between two looks at the metric."""
    tolerance: float = 0.1
    """Relative distance from the target within which nothing changes."""
    stabilization_s: float = 300.0
    """A scale-down goes no lower than the highest recommendation of this time."""
    up_stabilization_s: float = 0.0
    """A scale-up goes no higher than the lowest recommendation of this time."""
    up_pods: float = 4.0
    """Pods that may be added in `up_period_s` however few there are."""
    up_share: float = 1.0
    """Share of the pods that may be added in `up_period_s`; the larger of the two counts."""
    up_period_s: float = 15.0
    down_share: float = 1.0
    """Share of the pods that may be removed in `down_period_s`."""
    down_period_s: float = 15.0

    def __post_init__(self) -> None:
        check_positive(self, "sync_s", "up_period_s", "down_period_s")
        check_not_negative(
            self, "tolerance", "stabilization_s", "up_stabilization_s", "up_pods", "up_share", "down_share"
        )
        if self.down_share > 1:
            raise ValueError(f"down_share: must be at most 1, not {self.down_share:g}")


def desired_by_pods(values: Sequence[float], missing: int, target: float, tolerance: float) -> int:
    """Replicas for a metric that pods have, one value for each; `missing` pods have none yet.

    As `calcPlainMetricReplicas` computes it. Without any value it is as many as there are.
    """
    current = len(values) + missing
    if not values:
        return current
    ratio = sum(values) / len(values) / target
    if missing:
        # An idle pod takes part in a scale-up, one on target in a scale-down.
        assumed = target if ratio < 1 else 0.0
        adjusted = (sum(values) + missing * assumed) / current / target
        if (ratio < 1) != (adjusted < 1):
            return current
        ratio = adjusted
    if abs(1 - ratio) <= tolerance + _ROUNDING:
        return current
    return math.ceil(ratio * current - _ROUNDING)


def desired_by_average(total: float, current: int, target: float, tolerance: float) -> int:
    """Replicas for a metric that belongs to no pod, with a target for its average (external metrics)."""
    if abs(1 - total / (target * max(1, current))) <= tolerance + _ROUNDING:
        return current
    return math.ceil(total / target - _ROUNDING)


class HpaBehavior:
    """What one HorizontalPodAutoscaler makes of its recommendations."""

    def __init__(self, settings: HpaSettings) -> None:
        self._settings = settings
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def replicas(self, desired: int, current: int, least: int, most: int, now_s: float) -> int:
        """The number of replicas from now on, given the one that the metric asks for."""
        settings = self._settings
        if not self._recommended:
            self._recommended.append((now_s, current))
        stable = self._stabilized(desired, current, now_s)
        self._recommended.append((now_s, desired))
        longest_s = max(settings.stabilization_s, settings.up_stabilization_s)
        while self._recommended[0][0] < now_s - longest_s:
            self._recommended.popleft()
        allowed = self._limited(stable, current, now_s)
        found = max(least, min(most, allowed))
        if found != current:
            self._changes.append((now_s, found - current))
        return found

    def _stabilized(self, desired: int, current: int, now_s: float) -> int:
        """No lower than needed lately, and no higher than needed all along."""
        settings = self._settings
        lately = [(now_s - at_s, count) for at_s, count in self._recommended]
        up = min([desired, *(count for age_s, count in lately if age_s < settings.up_stabilization_s)])
        down = max([desired, *(count for age_s, count in lately if age_s < settings.stabilization_s)])
        return min(max(current, up), down)

    def _limited(self, wanted: int, current: int, now_s: float) -> int:
        """As far as the policies let it go, counted from what there was when their periods began."""
        settings = self._settings
        longest_s = max(settings.up_period_s, settings.down_period_s)
        while self._changes and self._changes[0][0] <= now_s - longest_s:
            self._changes.popleft()
        if wanted > current:
            before = current - self._changed(1, settings.up_period_s, now_s)
            limit = max(before + settings.up_pods, math.ceil(before * (1 + settings.up_share)))
            return max(current, min(wanted, math.floor(limit)))
        if wanted < current:
            before = current + self._changed(-1, settings.down_period_s, now_s)
            return min(current, max(wanted, math.floor(before * (1 - settings.down_share))))
        return wanted

    def _changed(self, sign: int, period_s: float, now_s: float) -> int:
        return sum(
            sign * change for at_s, change in self._changes if at_s > now_s - period_s and sign * change > 0
        )
