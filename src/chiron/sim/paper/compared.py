"""The policies that experiments set beside each other, as published and tuned."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.sim.policies import PolicyChoice
from chiron.sim.settings import SimModel
from chiron.sim.tuned import LLUMNIX, tuned
from chiron.sim.tuning import Search, grid

OURS = "chiron"
PAPER = "chiron-paper"
"""The rules of the paper as printed."""
BASELINES = (
    "llumnix",
    "llumnix-migration",
    "llumnix-queue",
    "utilization",
    "queue-length",
    "in-flight",
    "dynamo-like",
)
"""Autoscaling ones, each as it was published."""
COMPARED = (OURS, PAPER, *BASELINES, "fixed")
"""One line each in sweeps; `fixed` gets the smallest fleet that attains."""
COMPARED_QUICKLY = (OURS, PAPER, "llumnix", "llumnix-migration", "utilization", "in-flight", "dynamo-like")
TUNED = (LLUMNIX, "utilization", "queue-length", "in-flight", "dynamo-like")
"""Those that are tuned to a workload too; the first with all that was published of it."""
_MARGINS = (0.4, 0.6, 0.8, 1.0)
"""Shares of the SLOs that the planner of `dynamo-like` is told: what it knows besides, it has profiled."""


def search_for(policy: str, models: Sequence[SimModel], seeds: Sequence[int]) -> Search:
    """The search for the parameters with which a baseline attains with the fewest GPU-hours."""
    if policy == "dynamo-like":
        return Search(lambda found: PolicyChoice(policy, parameters=found), grid(slo_share=_MARGINS), seeds)
    return tuned(policy, models, seeds=seeds, rounds=2)


def compared(*, quick: bool) -> tuple[str, ...]:
    """The lines of a sweep."""
    return COMPARED_QUICKLY if quick else COMPARED
