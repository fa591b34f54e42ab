"""`in-flight`: Ray Serve's autoscaling on ongoing requests per replica.

After Ray's documentation ("Advanced Ray Serve Autoscaling") and sources (serve/autoscaling_policy.py):
replicas = requests that run or wait, averaged over `look_back_s`, over `target`. A change is made once every
decision of `upscale_delay_s` or `downscale_delay_s` has asked for one in its direction, to what the last of
them asked for. From no replica the first request starts one at once; the last one goes only from one. The
defaults are Ray's. Its target of 2 is meant for replicas that serve a request or two at a time: for an
engine that batches hundreds it holds many times the GPUs that are needed, and Ray advises to load-test for
a target of one's own. So it is to be reported both with the default and tuned.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.sim.baselines.replicas import (
    check_not_negative,
    check_positive,
    most_replicas,
    replicas_of,
    toward,
    waiting_in,
    waiting_in_routers,
)


@dataclass(frozen=True, slots=True)
class InFlightSettings:
    """ValueError by field."""

    target: float = 2.0
    """Requests per replica that run or wait."""
    look_back_s: float = 30.0
    """They are averaged over this time."""
    upscale_delay_s: float = 30.0
    """How long every decision must have been to add replicas."""
    downscale_delay_s: float = 600.0
    """How long every decision must have been to remove replicas."""
    upscaling_factor: float = 1.0
    """Of the replicas that are missing this share is added."""
    downscaling_factor: float = 1.0
    """Of the replicas too many this share is removed, at least one."""
    batch_weight: float = 1.0
    """What a batch request that waits counts for, beside an interactive one."""

    def __post_init__(self) -> None:
        check_positive(self, "target", "look_back_s", "upscaling_factor", "downscaling_factor")
        check_not_negative(self, "upscale_delay_s", "downscale_delay_s", "batch_weight")


class InFlightAutoscaler:
    """Ray Serve's policy for each model."""

    def __init__(self, settings: InFlightSettings | None = None) -> None:
        self._settings = settings or InFlightSettings()
        self._models: dict[str, _Deployment] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Decides on every model at every tick."""
        actions: list[Action] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            deployment = self._models.setdefault(model.name, _Deployment(self._settings))
            done, assessment = deployment.assess(model, snapshot)
            actions += done
            assessments.append(assessment)
        return FleetDecision(tuple(actions), tuple(assessments))


class _Deployment:
    """What is remembered of one model."""

    def __init__(self, settings: InFlightSettings) -> None:
        self._settings = settings
        self._ongoing: deque[tuple[float, float]] = deque()
        self._up_since_s: float | None = None
        self._down_since_s: float | None = None

    def assess(
        self, model: ModelFleet, snapshot: FleetSnapshot
    ) -> tuple[tuple[Action, ...], ModelAssessment]:
        settings, now_s = self._settings, snapshot.now_s
        replicas = replicas_of(model)
        ongoing = self._averaged(_ongoing(model, settings.batch_weight), now_s)
        asked = ongoing / settings.target
        most = most_replicas(model, snapshot)
        desired = max(model.min_instances, min(most, self._scaled(asked, replicas.count)))
        if not replicas.count:
            wanted = max(1, model.min_instances) if ongoing and most else model.min_instances
        else:
            wanted = self._delayed(desired, replicas.count, now_s)
        numbers = {
            "ongoing": ongoing,
            "desired": float(desired),
            "replicas": float(replicas.count),
            "wanted": float(wanted),
        }
        reason = f"{ongoing:.1f} requests run or wait, {settings.target:g} per replica are the target"
        return toward(model, wanted, reason, numbers), ModelAssessment(model.name, numbers, reason)

    def _averaged(self, ongoing: float, now_s: float) -> float:
        self._ongoing.append((now_s, ongoing))
        while self._ongoing[0][0] <= now_s - self._settings.look_back_s:
            self._ongoing.popleft()
        return sum(count for _, count in self._ongoing) / len(self._ongoing)

    def _scaled(self, asked: float, current: int) -> int:
        """As far toward what is asked for as the factors say."""
        settings = self._settings
        delta = asked - current
        factor = settings.upscaling_factor if delta > 0 else settings.downscaling_factor
        found = math.ceil(current + factor * delta)
        stuck = math.ceil(asked) < current and found == current
        return found - 1 if stuck else found

    def _delayed(self, desired: int, current: int, now_s: float) -> int:
        """What was asked for throughout the delay, else what there is."""
        settings = self._settings
        if desired > current:
            self._down_since_s = None
            self._up_since_s = now_s if self._up_since_s is None else self._up_since_s
            if now_s - self._up_since_s >= settings.upscale_delay_s:
                self._up_since_s = None
                return desired
        elif desired < current:
            self._up_since_s = None
            self._down_since_s = now_s if self._down_since_s is None else self._down_since_s
            if now_s - self._down_since_s >= settings.downscale_delay_s:
                self._down_since_s = None
                # The last one goes alone.
                return desired if current == 1 else max(1, desired)
        else:
            self._up_since_s = self._down_since_s = None
        return current


def _ongoing(model: ModelFleet, batch_weight: float) -> float:
    at_instances = sum(
        each.running_interactive + each.running_batch + waiting_in(each, batch_weight)
        for each in model.instances
    )
    return at_instances + waiting_in_routers(model, batch_weight)
