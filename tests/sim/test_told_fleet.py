"""The reference that knows how the fleet came out, by hand."""

from __future__ import annotations

import math

import pytest

from chiron.policy.serving import QueueCapacity
from chiron.policy.waiting import LaterCapacity, WaitEstimate
from chiron.policy.words import RequestClass, Role
from chiron.sim.told_fleet import told_wait_s
from chiron.sim.waits import FleetChange, WaitPair

BEFORE = FleetChange(0.0, "a", Role.MIXED, 10)


def pair(
    *, tokens: float = 6_000.0, request_class: RequestClass = RequestClass.BATCH, later=(), ratio: float = 1.0
) -> WaitPair:
    """60 requests ahead of 100 tokens each, queued at 50 s; `a` makes 100 tokens a second."""
    estimate = WaitEstimate(tokens * ratio / 100.0, 1.0, 2.0, 0.95, request_class, ratio=ratio, tokens=tokens)
    return WaitPair(50.0, 60, estimate, 1.0, QueueCapacity(100.0, later, each={"a": 100.0}))


def test_a_fleet_that_stays_gives_the_estimate_itself() -> None:
    assert told_wait_s(pair(), [BEFORE]) == pytest.approx(60.0)
    assert told_wait_s(pair(ratio=1.5), [BEFORE]) == pytest.approx(90.0)


def test_an_instance_that_comes_takes_its_slots_and_makes_what_the_others_make() -> None:
    # 2,000 tokens in 20 s, 10 requests of 100 at once, the other 3,000 at 200 a second.
    assert told_wait_s(pair(), [BEFORE, FleetChange(70.0, "b", Role.BATCH, 10)]) == pytest.approx(35.0)


def test_an_instance_that_goes_and_comes_back_makes_nothing_meanwhile() -> None:
    changes = [BEFORE, FleetChange(60.0, "a", None, 0), FleetChange(100.0, "a", Role.MIXED, 10)]
    # 1,000 in 10 s, 40 s of nothing, 1,000 at once, 4,000 in 40 s.
    assert told_wait_s(pair(), changes) == pytest.approx(90.0)


def test_an_instance_that_never_comes_back_leaves_the_request_waiting() -> None:
    assert told_wait_s(pair(), [BEFORE, FleetChange(60.0, "a", None, 0)]) == math.inf


def test_an_instance_that_takes_the_other_class_does_not_serve() -> None:
    other = FleetChange(60.0, "b", Role.INTERACTIVE, 10)
    assert told_wait_s(pair(), [BEFORE, other]) == pytest.approx(60.0)
    interactive = pair(request_class=RequestClass.INTERACTIVE)
    assert told_wait_s(interactive, [BEFORE, other]) < 60.0


def test_what_interactive_requests_leave_later_stays_as_estimated_and_what_loads_is_as_it_came() -> None:
    later = (LaterCapacity(10.0, 50.0), LaterCapacity(20.0, 100.0, slots=10))
    # The instance that was expected after 20 s never came: 1,000 in 10 s, the rest at 150 a second.
    assert told_wait_s(pair(later=later), [BEFORE]) == pytest.approx(10.0 + 5_000.0 / 150.0)
