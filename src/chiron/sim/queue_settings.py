"""How a simulated router queues, admits and estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf


class InvalidSettingError(ValueError):
    """A setting is out of range; the text names its key."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key}: {problem}")
        self.key = key


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """One model's queues at the router. InvalidSettingError names a bad field."""

    shared: bool = False
    """Both classes wait in one queue in the order of the discipline: whoever is first blocks those behind.
    Otherwise each has its own, and interactive requests go first."""
    preemption: bool = True
    """Running batch requests give way to interactive ones; otherwise they keep their slots to the end."""
    priorities: bool = False
    """Engines take interactive requests first, and put batch requests back first when KV space runs out; with
    preemption they do so in any case."""
    prefix_affinity: bool = True
    """Requests go where the beginning of their prompt is cached, among instances loaded about alike."""
    starvation_s: float = 300.0
    """Who has waited so long in the interactive queue goes before others of its tenant, in the shared one
    before all."""
    batch_starvation_s: float = 86_400.0
    """Who has waited so long in the batch queue goes first."""
    batch_limit: int = 0
    """Batch requests per model that may wait; one more is refused. 0: no limit."""
    estimate_every: int = 0
    """Each so-manieth request that has to wait gets an estimate that is compared with its wait; 0: none."""
    estimate_quantile: float = 0.95
    """Of estimated waits; admission goes by it."""
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    """Tenant → its share of the places that come free, beside others whose interactive requests wait; of
    those that are not named: 1."""

    def __post_init__(self) -> None:
        for key in ("starvation_s", "batch_starvation_s"):
            if not 0 < getattr(self, key) < inf:
                raise InvalidSettingError(key, f"must be positive and finite, got {getattr(self, key)}")
        for key in ("batch_limit", "estimate_every"):
            if getattr(self, key) < 0:
                raise InvalidSettingError(key, f"must not be negative, got {getattr(self, key)}")
        for tenant, weight in self.tenant_weights.items():
            if not 0 < weight < inf:
                raise InvalidSettingError(
                    "tenant_weights", f"of {tenant!r} must be positive and finite, got {weight}"
                )
        if not 0.5 <= self.estimate_quantile < 1:
            raise InvalidSettingError(
                "estimate_quantile", f"must be at least 0.5 and below 1, got {self.estimate_quantile}"
            )
