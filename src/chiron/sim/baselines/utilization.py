"""`utilization`: a HorizontalPodAutoscaler on how full the engines are.

The algorithm is that of `chiron.sim.baselines.hpa`. CPU and GPU utilisation say nothing about an LLM: the CPU
idles and the GPU is busy with a single request. What is published for LLMs is engines' own metrics: the
requests in the batch (Google Cloud, "Best practices for autoscaling LLM inference workloads with GPUs on
GKE") and the use of the KV cache, of which the Workload Variant Autoscaler of llm-d takes 0.80 for saturated.
Both are used with that target, and as always with several metrics the one that asks for more replicas counts.
With the A100's large KV cache that is the slots. Requests that wait can be counted with those in the batch
(`waiting_weight`): that tells how much is missing where all slots are taken, but also asks for replicas for
queues that are gone by the time they have loaded. In bursts (CV 8) slots in use alone keep as many SLOs with
fewer GPUs and scaling actions, so that this, the published metric, is the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from chiron.policy.decisions import Action, FleetDecision, ModelAssessment
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.sim.baselines.hpa import HpaBehavior, HpaSettings, desired_by_pods
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
class UtilizationSettings(HpaSettings):
    """ValueError by field."""

    target: float = 0.8
    """Share of the slots, and of the KV cache, to be in use."""
    waiting_weight: float = 0.0
    """What a request that waits counts for, beside one that has a slot."""
    batch_weight: float = 1.0
    """What a batch request that waits counts for, beside an interactive one."""

    def __post_init__(self) -> None:
        HpaSettings.__post_init__(self)
        check_positive(self, "target")
        check_not_negative(self, "waiting_weight", "batch_weight")


class UtilizationAutoscaler:
    """One HorizontalPodAutoscaler for each model, with one replica at least, as it cannot start from none."""

    def __init__(self, settings: UtilizationSettings | None = None) -> None:
        self._settings = settings or UtilizationSettings()
        self._behaviors: dict[str, HpaBehavior] = {}
        self._next_s: dict[str, float] = {}

    def decide(self, snapshot: FleetSnapshot) -> FleetDecision:
        """Looks at a model once in `sync_s`."""
        actions: list[Action] = []
        assessments: list[ModelAssessment] = []
        for model in snapshot.models:
            if snapshot.now_s < self._next_s.get(model.name, snapshot.now_s):
                continue
            self._next_s[model.name] = snapshot.now_s + self._settings.sync_s
            done, assessment = self._assess(model, snapshot)
            actions += done
            assessments.append(assessment)
        return FleetDecision(tuple(actions), tuple(assessments))

    def _assess(
        self, model: ModelFleet, snapshot: FleetSnapshot
    ) -> tuple[tuple[Action, ...], ModelAssessment]:
        settings = self._settings
        replicas = replicas_of(model)
        weight, batch_weight = settings.waiting_weight, settings.batch_weight
        outside = waiting_in_routers(model, batch_weight) / max(1, len(replicas.ready))
        slots = [
            (
                each.running_interactive
                + each.running_batch
                + weight * (waiting_in(each, batch_weight) + outside)
            )
            / each.batch_size
            for each in replicas.ready
        ]
        cache = [each.kv_usage for each in replicas.ready]
        desired = max(
            desired_by_pods(values, len(replicas.loading), settings.target, settings.tolerance)
            for values in (slots, cache)
        )
        behavior = self._behaviors.setdefault(model.name, HpaBehavior(settings))
        least = max(1, model.min_instances)
        most = max(least, most_replicas(model, snapshot))
        wanted = behavior.replicas(desired, replicas.count, least, most, snapshot.now_s)
        numbers = {
            "slots": sum(slots) / max(1, len(slots)),
            "kv_cache": sum(cache) / max(1, len(cache)),
            "desired": float(desired),
            "replicas": float(replicas.count),
            "wanted": float(wanted),
        }
        reason = f"slots are {numbers['slots']:.2f} full, the KV cache is {numbers['kv_cache']:.2f} full"
        return toward(model, wanted, reason, numbers), ModelAssessment(model.name, numbers, reason)
