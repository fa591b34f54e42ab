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


class OwnLimit:
    """One limit as its autoscaler wants it, through the times in which an operator sets it.

    A policy decides from what is in force, so that under a limit set by hand it wants little more than that.
    Whoever gets the limit back goes on from what it wanted before somebody else set it. Where that is not
    known, because this agent has started since, it goes on from what it wants or holds to be safe.
    """

    def __init__(self) -> None:
        self._own = 0
        self._by_hand = 0
        self._goes_on_from = 0

    def wanted(self, by_hand: int, in_force: int, proposed: int, safe: int = 0) -> int:
        """What is wanted now.

        Args:
            by_hand: what an operator has set; 0: nothing.
            in_force: what the sample was taken with.
            proposed: the policy's answer to the sample.
            safe: the largest value that it holds to be safe; 0: it does not say.
        """
        if by_hand:
            self._by_hand = by_hand
            self._goes_on_from = self._own or max(proposed, safe)
            return self._goes_on_from
        if self._by_hand and in_force == self._by_hand != self._goes_on_from:
            # Given back, and the sample is still one of before.
            return self._goes_on_from
        self._by_hand = 0
        self._own = proposed
        return proposed


def set_by_hand(want: Want) -> LimitPair:
    """What an operator has set."""
    return LimitPair(want.batch_size, want.step_token_budget)


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
