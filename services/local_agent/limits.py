"""Whose word counts on a worker's batch size and step-token budget. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from services.local_agent.desired import Want


@dataclass(frozen=True, slots=True)
class LimitPair:
    """Batch size and step-token budget that somebody wants."""

    batch_size: int = 0
    """In requests; 0: as it is."""
    step_token_budget: int = 0
    """In tokens; 0: as it is."""


AS_IT_IS = LimitPair()


def wanted_limits(want: Want, proposed: LimitPair) -> LimitPair:
    """What a worker should run with: each limit by itself, the first of these that names it.

    1. What an operator has set (`Want`, from the controller, and kept while no controller is there).
    2. What the local autoscaler wants (`proposed`).
    3. What is in force: 0.
    """
    return LimitPair(
        want.batch_size or proposed.batch_size,
        want.step_token_budget or proposed.step_token_budget,
    )
