"""What a decision says of starting one fewer speaks against it, and is of what is really started."""

from __future__ import annotations

import itertools

import pytest

from chiron.policy.decisions import Alternative, Start
from chiron.policy.fleet import Chiron
from chiron.policy.fleet.weighed import fewer_for_deadlines
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

SLOTS = 8


def ready(number: int, running: int) -> FleetInstance:
    return FleetInstance(
        f"i{number}", "n", Role.MIXED, Phase.READY, SLOTS, SLOTS,
        running_interactive=running, tokens_per_s=40.0 * running,
    )  # fmt: skip


def fleet(instances: int, running: int, traffic: Traffic, most: int = 0) -> ModelFleet:
    mine = tuple(ready(number, running) for number in range(instances))
    return ModelFleet(
        "m", 1, 1, most, 10.0, 0.2, 2.0, mine, traffic, load_time_s=4.0, initial_batch_size=SLOTS
    )


def one_fewer(started: Start) -> Alternative:
    [found] = [one for one in started.alternatives if one.action == "start one fewer"]
    return found


def starts(model: ModelFleet, free: int) -> Start:
    decision = Chiron().decide(FleetSnapshot(0.0, (model,), {"n": free}))
    [start] = [one for one in decision.actions if isinstance(one, Start)]
    return start


def grown(instances: int, before: int, after: int) -> list[Alternative]:
    """What is said of one fewer when arrivals, in requests per second, become that many."""
    autoscaler, found = Chiron(), []
    for second in range(60):
        arrived = before if second < 56 else after
        # As many end as came before: 20 tokens each.
        traffic = Traffic(
            1.0, arrived, finished_interactive=before, finished_output_tokens=20 * before,
            finished_output_tokens_sq=400.0 * before,
        )  # fmt: skip
        model = fleet(instances, min(SLOTS, 1 + before // (2 * instances)), traffic)
        decision = autoscaler.decide(FleetSnapshot(float(second), (model,), {"n": 99}))
        found += [one_fewer(one) for one in decision.actions if isinstance(one, Start)]
    return found


@pytest.mark.parametrize(("most", "free"), [(3, 9), (0, 2)])
def test_what_is_not_started_counts_neither(most: int, free: int) -> None:
    # 40 wait beside 8 that run: more than two further instances of 8 slots carry, and two may be had.
    waiting = Traffic(1.0, queued_interactive=40)
    unbounded = starts(fleet(1, SLOTS, waiting), 99)
    bounded = starts(fleet(1, SLOTS, waiting, most), free)
    assert unbounded.count > bounded.count == 2
    told = one_fewer(bounded).numbers
    assert told["slots"] == (1 + bounded.count - 1) * SLOTS
    assert told["ibp"] == pytest.approx(48 / told["slots"])


def test_the_figures_told_of_growth_are_those_that_decided() -> None:
    kinds = set()
    for instances, before, more in itertools.product((1, 2, 4), (4, 8, 12, 16, 24), (8, 16, 24, 40, 80)):
        for other in grown(instances, before, before + more):
            numbers = other.numbers
            if "demand_ahead" in numbers:
                kinds.add("room")
                assert numbers["demand_ahead"] > numbers["room"], other.why_not
            elif "arrivals_likely" in numbers:
                kinds.add("arrivals")
                assert numbers["arrivals_likely"] > numbers["served"], other.why_not
                assert other.why_not.startswith(f"{numbers['arrivals_likely']:.2f} requests may arrive")
            else:
                assert numbers["slots"] <= 0 or numbers["ibp"] > numbers["limit"], other.why_not
    assert kinds == {"room", "arrivals"}


def test_one_request_is_one() -> None:
    assert one_fewer(starts(fleet(0, 0, Traffic(1.0, queued_interactive=1)), 1)).why_not == (
        "1 request would have no slot"
    )
    assert fewer_for_deadlines(0.5, 1, 1).why_not.endswith("and 1 request group would be late")
    assert fewer_for_deadlines(0.5, 1, 2).why_not.endswith("and 2 request groups would be late")
