"""What has been given up for another model stays that model's until it is taken (reconstructed).

GPUs become free only once whoever had them has drained, or sleeps. Whoever gave them up would by then often
be as urgent as the one that waits, and have them back first: it wakes where the other one has to load.
"""

from __future__ import annotations

from collections.abc import Sequence

from chiron.policy.fleet.plan import Plan

_LOADS = 2.0
"""Load times of the receiver for which a gift is kept: one that cannot start must not hold up the giver."""


class Given:
    """Remembers who gave up an instance for which model of its priority, between ticks."""

    def __init__(self) -> None:
        self._to: dict[str, tuple[str, float]] = {}

    def keep(self, plans: Sequence[Plan], now_s: float) -> None:
        """Let those yield that gave to a model which still waits."""
        waits = {plan.model.name for plan in plans if plan.wishes}
        self._to = {
            giver: (receiver, until_s)
            for giver, (receiver, until_s) in self._to.items()
            if receiver in waits and now_s < until_s
        }
        for plan in plans:
            plan.yields = plan.model.name in self._to

    def note(self, plans: Sequence[Plan], now_s: float) -> None:
        """Take down who has given at this tick."""
        loads = {plan.model.name: plan.model.load_time_s for plan in plans}
        for plan in plans:
            if plan.gave_to:
                self._to[plan.model.name] = plan.gave_to, now_s + _LOADS * loads[plan.gave_to]
