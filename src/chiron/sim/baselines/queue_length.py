"""`queue-length`: KEDA on the number of requests that wait.

After the tutorial "Autoscaling with KEDA" of the vLLM production stack (5 waiting requests per replica,
polling interval 15 s, cool-down 360 s) and the sources of KEDA (pkg/scaling/executor). KEDA scales between
none and one replica itself: it starts one as soon as a trigger is active, and removes the last one when none
has been active for the cool-down. From one replica on it leaves scaling to a HorizontalPodAutoscaler with the
queue as external metric: desired = ceil(waiting / 5), whatever runs, with that autoscaler's tolerance and
windows (`chiron.sim.baselines.hpa`). Beside the queue, requests that arrived within a minute keep the last
replica, as the tutorial has it for scaling to none. A model with `min_instances` never goes below it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.sim.baselines.hpa import HpaBehavior, HpaSettings, desired_by_average
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
class QueueLengthSettings(HpaSettings):
    """ValueError by field."""

    threshold: float = 5.0
    """Requests that may wait, per replica."""
    polling_s: float = 15.0
    """Between two looks at the triggers, for the first and the last replica."""
    cooldown_s: float = 360.0
    """How long no trigger has been active when the last replica goes."""
    keepalive_s: float = 60.0
    """How long an arrival keeps the trigger active."""
    batch_weight: float = 1.0
    """What a batch request that waits counts for, beside an interactive one."""

    def __post_init__(self) -> None:
        HpaSettings.__post_init__(self)
        check_positive(self, "threshold", "polling_s")
        check_not_negative(self, "cooldown_s", "keepalive_s", "batch_weight")


class QueueLengthAutoscaler:
    """KEDA's executor and the HorizontalPodAutoscaler that it makes, for each model."""

    def __init__(self, settings: QueueLengthSettings | None = None) -> None:
        self._settings = settings or QueueLengthSettings()
        self._models: dict[str, _Scaled] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Looks at a model once in `polling_s` and once in `sync_s`."""
        actions: list[Action] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            scaled = self._models.setdefault(model.name, _Scaled(self._settings))
            found = scaled.assess(model, snapshot)
            if found is not None:
                actions += found[0]
                assessments.append(found[1])
        return FleetDecision(tuple(actions), tuple(assessments))


class _Scaled:
    """One model's ScaledObject."""

    def __init__(self, settings: QueueLengthSettings) -> None:
        self._settings = settings
        self._behavior = HpaBehavior(settings)
        self._poll_s = self._sync_s = -math.inf
        self._arrived_s = -math.inf
        self._active_s: float | None = None

    def assess(
        self, model: ModelFleet, snapshot: FleetSnapshot
    ) -> tuple[tuple[Action, ...], ModelAssessment] | None:
        """What changes now; None: it is not time for a look."""
        settings, now_s = self._settings, snapshot.now_s
        if model.traffic.arrived_interactive + model.traffic.arrived_batch:
            self._arrived_s = now_s
        replicas = replicas_of(model)
        waiting = waiting_in_routers(model, settings.batch_weight) + sum(
            waiting_in(each, settings.batch_weight) for each in model.instances
        )
        numbers = {"waiting": waiting, "replicas": float(replicas.count)}
        most = most_replicas(model, snapshot)
        if now_s >= self._poll_s:
            self._poll_s = now_s + settings.polling_s
            kept = self._executor(model, replicas.count, waiting, now_s)
            if kept is not None:
                wanted, reason = min(kept[0], most), kept[1]
                return toward(model, wanted, reason, numbers), ModelAssessment(model.name, numbers, reason)
        if now_s < self._sync_s or not replicas.count:
            return None
        self._sync_s = now_s + settings.sync_s
        desired = desired_by_average(waiting, replicas.count, settings.threshold, settings.tolerance)
        least = max(1, model.min_instances)
        wanted = self._behavior.replicas(desired, replicas.count, least, max(least, most), now_s)
        numbers |= {"desired": float(desired), "wanted": float(wanted)}
        reason = f"{waiting:g} requests wait, {settings.threshold:g} per replica may"
        return toward(model, wanted, reason, numbers), ModelAssessment(model.name, numbers, reason)

    def _executor(
        self, model: ModelFleet, count: int, waiting: float, now_s: float
    ) -> tuple[int, str] | None:
        """The replicas that KEDA itself sets, and why; None: the HorizontalPodAutoscaler has its way."""
        settings = self._settings
        active = waiting > 0 or now_s - self._arrived_s <= settings.keepalive_s
        if active or self._active_s is None:
            self._active_s = now_s
        if count < model.min_instances:
            return model.min_instances, f"{count} instances, fewer than the least"
        if not count and active:
            return 1, "a trigger is active and nothing serves"
        if count and not active and not model.min_instances:
            idle_s = now_s - self._active_s
            if idle_s > settings.cooldown_s:
                return 0, f"no trigger has been active for {idle_s:.0f} s"
        return None
