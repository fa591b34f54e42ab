"""What the global autoscaler `chiron` is set to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChironSettings:
    """Set once. ValueError names a field that is out of range. All values are ours (reconstructed)."""

    theta_quantile: float = 0.95
    """Quantile of the growth of demand within one load time for which Θ keeps headroom."""
    default_theta: float = 0.85
    """Θ until `theta_warmup_loads` load times of demand have been seen."""
    min_theta: float = 0.3
    """Θ is never below this, however much demand has grown."""
    theta_warmup_loads: float = 20.0
    """In load times."""
    theta_history_loads: float = 90.0
    """Demand older than this is forgotten, in load times."""
    ttft_share: float = 0.4
    """Share of the TTFT SLO that requests beyond the slots may spend in the queue, at most a load time."""
    step_ttft_share: float = 0.7
    """Likewise of requests beyond what fills the steps, whether or not slots are free for them: prompts are
    computed evenly, while slots come free by chance."""
    step_share: float = 1.0
    """Share of the step-token budget that running requests and their prompts may take: slots beyond serve
    nobody. 0: whatever fills the steps."""
    hysteresis: float = 0.08
    """What a scale-down leaves must be this much (relative) below the target."""
    payback: float = 2.0
    """A scale-down must hold for this many times what undoing it costs (a load and a drain)."""
    min_hold_s: float = 60.0
    """And for at least this long."""
    retire_share: float = 0.5
    """Largest share of a model's instances that one tick retires; at least one."""
    confidence: float = 2.0
    """Standard errors by which arrivals must exceed supply before instances are added ahead of demand."""
    wait_quantile: float = 0.95
    """Quantile of the estimated batch work that must fit before the deadline."""
    defer_below: float = 0.15
    """With no more than this share of one instance missing, spare capacity gets its chance first."""
    defer_far: float = 0.5
    """What the same comes to where deadlines are far: an instance that is missing in part can start later."""
    taper_margin: float = 0.05
    """What is left of batch work must fit without a batch instance, and this share more, before that goes."""
    batch_idle_s: float = 5.0
    """How long no batch request must have been seen before batch instances go."""
    hand_over: bool = True
    """What an instance that goes still runs goes on at the others as far as they have room; otherwise it ends
    where it is."""

    def __post_init__(self) -> None:
        for name in ("theta_quantile", "default_theta", "min_theta", "retire_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0 <= self.step_share <= 1:
            raise ValueError(f"step_share must be from 0 to 1, got {self.step_share}")
        for name in ("hysteresis", "defer_below", "defer_far", "ttft_share", "step_ttft_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("theta_warmup_loads", "theta_history_loads", "payback", "min_hold_s", "confidence"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0.5 <= self.wait_quantile < 1:
            raise ValueError(f"wait_quantile must be at least 0.5 and below 1, got {self.wait_quantile}")
        for name in ("taper_margin", "batch_idle_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
