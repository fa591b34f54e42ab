"""How the autoscaler stands with a model, as operators see it. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chiron.policy.decisions import ModelAssessment
from chiron.policy.words import Role
from chiron.store import ModelRecord
from chiron.v1 import cluster_pb2
from services.global_controller.restraint import Restraint


@dataclass(frozen=True, slots=True)
class Assessed:
    """What the last tick found of a model, and what became of it."""

    at_s: float
    """Monotonic time of the tick."""
    found: ModelAssessment | None
    wanted: Counter[Role]
    """Instances that the policy wants, by role."""
    restraint: Restraint
    void: tuple[str, ...] = ()
    """Why something that it wants has not been done."""
    fewest: int = 0
    """Fewest instances at that time."""
    numbers: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Takes the policy's numbers over."""
        object.__setattr__(self, "numbers", dict(self.found.numbers) if self.found is not None else {})


def autoscale_status(
    model: ModelRecord,
    assessed: Assessed | None,
    restraint: Restraint,
    *,
    age_s: float,
    off: bool,
    trouble: str,
) -> cluster_pb2.AutoscaleStatus:
    """The status.

    Args:
        model: its record.
        assessed: the last tick's; None: there was none yet.
        restraint: what keeps decisions from being carried out.
        age_s: time since that tick.
        off: there is no policy.
        trouble: why the autoscaler does nothing at all for now; empty: it works.
    """
    status = cluster_pb2.AutoscaleStatus(
        state=restraint.shown,
        pinned_instances=model.autoscaling.pinned_instances,
        min_instances=model.parsed_spec().min_instances,
    )
    if off:
        status.state = cluster_pb2.AUTOSCALE_STATE_OFF
        status.reason = "the controller's autoscaler.policy is off"
        return status
    texts = restraint.reasons
    if trouble:
        texts = [trouble, *texts]
        if not (restraint.nothing or restraint.count):
            status.state = cluster_pb2.AUTOSCALE_STATE_HOLDING
    if assessed is not None:
        wanted, numbers = assessed.wanted, assessed.numbers
        if restraint.count:
            count = f"wanted {wanted.total()}, {restraint.count}"
            texts = [count, *(text for text in texts if text != restraint.count)]
        texts += [why for why in assessed.void if why not in texts]
        texts += [assessed.found.reason] if assessed.found is not None else []
        status.ibp, status.bbp = numbers.get("ibp", 0.0), numbers.get("bbp", 0.0)
        status.theta = numbers.get("theta", 0.0)
        status.numbers.update(numbers)
        status.wanted_interactive = wanted[Role.INTERACTIVE]
        status.wanted_mixed, status.wanted_batch = wanted[Role.MIXED], wanted[Role.BATCH]
        status.tick_age_ms = age_s * 1000
        status.min_instances = assessed.fewest
    status.reason = "; ".join(dict.fromkeys(texts))
    return status
