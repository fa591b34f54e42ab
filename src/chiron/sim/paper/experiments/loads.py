"""Interactive traffic that several experiments share: a run that two of them ask for is made once."""

from __future__ import annotations

from typing import Any

from chiron.sim.paper.workloads import GPUS_PER_RATE, model, on_a100s
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Traffic


def rate_per_s(*, quick: bool) -> float:
    """Of the 8B model, for 4 or 6 GPUs."""
    return 80.0 if quick else 120.0


def interactive(
    *, quick: bool, what: str = "", traffic: dict[str, Any] | None = None, **changes: Any
) -> Scenario:
    """W_A with the 8B model: 600 s or 1,000 s after the warm-up, 30 load times or more.

    Args:
        quick: the smaller one.
        what: tells it from the plain one, in its name.
        traffic: further fields of Traffic.
        changes: further fields of SimModel.
    """
    rate = rate_per_s(quick=quick)
    return on_a100s(
        f"W_A 8b {rate:g} per s{what and f', {what}'}",
        [model("8b", GPUS_PER_RATE["8b"] * rate, **changes)],
        traffic=[Traffic(**{"model": "8b", "rate_per_s": rate, **(traffic or {})})],
        duration_s=800.0 if quick else 1500.0,
        warmup_s=200.0 if quick else 500.0,
    )
