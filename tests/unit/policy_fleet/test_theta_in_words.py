"""What a decision says of Θ is what Θ is."""

from __future__ import annotations

import pytest

from chiron.policy.fleet import Chiron
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


class Told:
    """One model with one instance of 50 slots and a load time of a second, over the seconds."""

    def __init__(self) -> None:
        self._chiron = Chiron()
        self._now_s = 0.0

    def after(self, ticks: int, running: int) -> tuple[str, float]:
        """The reason and Θ after so many seconds with so many requests."""
        found = None
        for _ in range(ticks):
            self._now_s += 1
            one = FleetInstance("a", "n", Role.MIXED, Phase.READY, 50, 50, running_interactive=running)
            # Each request takes a load time, so that as many arrive within one as run.
            model = ModelFleet("m", 1, 1, 1, 10.0, 0.2, 2.0, (one,), Traffic(1.0, running), load_time_s=1.0)
            [found] = self._chiron.decide(FleetSnapshot(self._now_s, (model,))).assessments
        assert found is not None
        return found.reason, found.numbers["theta"]


def test_the_default_is_named_where_it_is_used() -> None:
    reason, theta = Told().after(3, running=5)
    assert "Θ is the default: too little history" in reason
    assert theta == 0.85


def test_without_demand_it_is_at_its_least_and_not_called_the_default() -> None:
    told = Told()
    told.after(30, running=5)
    reason, theta = told.after(30, running=0)
    assert "Θ is at its least: nothing is asked for" in reason
    assert theta == 0.3


def test_measured_growth_is_named_where_demand_like_this_has_been_seen() -> None:
    reason, theta = Told().after(60, running=5)
    assert "Θ from measured growth" in reason
    assert theta == 1.0


def test_more_demand_than_ever_has_at_most_the_default() -> None:
    told = Told()
    told.after(60, running=5)
    reason, theta = told.after(1, running=40)
    assert "Θ is the default: too little history" in reason
    assert theta == pytest.approx(0.85)
