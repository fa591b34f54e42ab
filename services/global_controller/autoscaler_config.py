"""Configuration of the global autoscaler."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from chiron.policy.fleet import ChironSettings, autoscaler_names

OFF = "off"
"""The policy that is none."""


class AutoscalerMode(Enum):
    """What becomes of the autoscaler's decisions."""

    ACTIVE = "active"
    ADVISORY = "advisory"


@dataclass(frozen=True, slots=True)
class AutoscalerConfig:
    """Keys of the table `[controller.autoscaler]`."""

    policy: str = "chiron"
    """Which policy decides for the models whose spec has `autoscaling.enabled`: chiron, chiron-paper, a class
    of your own as `module:Class`, or off."""
    mode: AutoscalerMode = AutoscalerMode.ACTIVE
    """active, or advisory: decisions are made, recorded as `advised` and shown, and not carried out."""
    interval_s: float = 1.0
    """Time between two decisions, in seconds."""
    gpu_budget: int = 0
    """Most GPUs that the instances of all models may hold together, those that sleep left out; the autoscaler
    starts nothing beyond it. 0: no limit but the cluster's size."""
    chiron: ChironSettings = field(default_factory=ChironSettings)

    def __post_init__(self) -> None:
        """Refuses what cannot work."""
        module, _, name = self.policy.partition(":")
        if self.policy not in (OFF, *autoscaler_names()) and not (module and name):
            known = ", ".join((*autoscaler_names(), OFF))
            raise ValueError(f"policy: unknown policy {self.policy!r}: known are {known}, or module:Class")
        if not 0.05 <= self.interval_s < math.inf:
            raise ValueError(f"interval_s: must be a number >= 0.05, not {self.interval_s:g}")
        if self.gpu_budget < 0:
            raise ValueError(f"gpu_budget: must be >= 0, not {self.gpu_budget}")
