"""When arrivals ebb away and streams can be handed over, what nobody needs any more goes at once."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Retire
from chiron.policy.fleet import Chiron, ChironSettings
from chiron.policy.fleet.arrivals import ArrivalRate, Arrivals
from chiron.policy.fleet.ebb import ebbing
from chiron.policy.fleet.supply import Supply
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

LOAD_S = 20.0


def instance(key: str, running: int, phase: Phase = Phase.READY) -> FleetInstance:
    return FleetInstance(
        key, "n", Role.MIXED, phase, 100, 100, running_interactive=running, tokens_per_s=25.0 * running
    )


def supply(number: int, demand: int, leaving: int = 0) -> Supply:
    return Supply(
        interactive=[instance(str(key), 0) for key in range(number)],
        slots=100.0 * number,
        slots_each=100.0,
        demand=demand,
        leaving=leaving,
    )


def rate(falling: float) -> ArrivalRate:
    return ArrivalRate(0.0, 0.0, 0.0, 0.0, falling, usual=200.0)


@pytest.mark.parametrize(
    ("demand", "leaving", "falling", "goes"),
    [
        # 70 of a hundred slots may be in demand, of which Θ leaves 90 %: 63 each.
        (189, 0, 0.0, 5),
        (190, 0, 0.0, 4),
        # What leaves comes over and counts.
        (100, 90, 0.0, 4),
        # An instance serves 25 a second, of which 92 % count: 23.
        (10, 0, 69.0, 5),
        (10, 0, 70.0, 4),
        # More than half of what all serve may still arrive.
        (10, 0, 101.0, 0),
        # At most half of them go at a time, and one stays.
        (0, 0, 0.0, 5),
    ],
)
def test_as_many_stay_as_hold_what_runs_and_serve_what_comes(
    demand: int, leaving: int, falling: float, goes: int
) -> None:
    settings = ChironSettings(retire_share=0.625)
    surplus, weighed = ebbing(supply(8, demand, leaving), rate(falling), 0.9, 25.0, settings)
    assert surplus == goes
    assert bool(weighed) == bool(goes)


def test_a_fleet_that_has_been_too_large_all_along_sees_no_ebb() -> None:
    steady = ArrivalRate(0.0, 0.0, 0.0, 0.0, falling=20.0, usual=20.0)
    assert ebbing(supply(8, 10), steady, 0.9, 25.0, ChironSettings()) == (0, ())


def test_the_last_one_stays() -> None:
    assert ebbing(supply(1, 0), rate(0.0), 0.9, 25.0, ChironSettings()) == (0, ())


def test_arrivals_are_surely_at_most_what_the_last_quarter_of_a_load_says() -> None:
    arrivals = Arrivals()
    for _ in range(80):
        arrivals.record(100, 1.0, LOAD_S)
    settled = arrivals.rate(2.0)
    for _ in range(5):
        arrivals.record(0, 1.0, LOAD_S)
    ebbed = arrivals.rate(2.0)
    assert settled is not None
    assert ebbed is not None
    assert settled.falling == pytest.approx(100.0)
    # One jump of 100 among 16 neighbours: an error of 17.7 for a block alone.
    assert ebbed.falling == pytest.approx(2 * (100**2 / (2 * 16)) ** 0.5)


def fleet(running: int, arrived: int) -> ModelFleet:
    traffic = Traffic(
        1.0,
        arrived_interactive=arrived,
        finished_interactive=arrived,
        finished_output_tokens=100 * arrived,
        finished_output_tokens_sq=100.0**2 * arrived,
    )
    instances = tuple(instance(str(key), running) for key in range(4))
    return ModelFleet("m", 1, 0, 0, 1.0, 0.2, 2.0, instances, traffic, load_time_s=LOAD_S)


@pytest.mark.parametrize("hand_over", [True, False])
def test_without_hand_over_it_waits_until_that_is_known_to_last(hand_over: bool) -> None:
    autoscaler = Chiron(ChironSettings(hand_over=hand_over))
    for tick in range(200):
        decision = autoscaler.decide(FleetSnapshot(float(tick), (fleet(80, 80),), {"n": 0}))
        assert not decision.actions
    gone: list[Retire] = []
    for tick in range(200, 208):
        decision = autoscaler.decide(FleetSnapshot(float(tick), (fleet(30, 0),), {"n": 0}))
        gone += [each for each in decision.actions if isinstance(each, Retire)]
        if gone:
            break
    assert bool(gone) == hand_over
    assert all(each.hand_over and each.reason.startswith("arrivals ebb away") for each in gone)
