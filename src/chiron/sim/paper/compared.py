"""The policies that experiments set beside each other, as published and tuned."""

from __future__ import annotations

from chiron.sim.tuned import LLUMNIX

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


def compared(*, quick: bool) -> tuple[str, ...]:
    """The lines of a sweep."""
    return COMPARED_QUICKLY if quick else COMPARED
