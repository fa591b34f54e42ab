"""What the throughput curve promises of an instance, by hand-worked reports."""

from __future__ import annotations

import math

import pytest

from chiron.policy.fleet.throughput import ThroughputCurve
from chiron.policy.snapshots import FleetInstance
from chiron.policy.words import Phase, Role


def tokens_per_s(running: float) -> float:
    """0.01 s between a request's tokens, and 0.001 s more for each that runs."""
    return running / (0.01 + 0.001 * running)


def curve(*running: int, batch_size: int = 16, waiting: int = 0) -> ThroughputCurve:
    """After a minute of reports from instances that run so many requests each."""
    learned = ThroughputCurve()
    report(learned, 60, *running, batch_size=batch_size, waiting=waiting)
    return learned


def report(
    learned: ThroughputCurve,
    seconds: int,
    *running: int,
    batch_size: int = 16,
    waiting: int = 0,
    slower: float = 1.0,
) -> None:
    """So many seconds with a report of each instance in each."""
    for _ in range(seconds):
        for each in running:
            learned.see(
                FleetInstance(
                    "i",
                    "n",
                    Role.MIXED,
                    Phase.READY,
                    batch_size,
                    batch_size,
                    running_interactive=each,
                    waiting_interactive=waiting,
                    tokens_per_s=tokens_per_s(each) / slower,
                )
            )
        learned.learn(1.0)


def test_what_full_instances_made_is_remembered_while_they_are_half_empty() -> None:
    learned = curve(16)
    # Half an hour with few requests and short prompts: the line through that promises less than was made.
    report(learned, 1800, 4, slower=1.5)
    assert learned.tokens_per_s(16, reach=1.1) == pytest.approx(tokens_per_s(16))
    # It says nothing of instances that are much less full than those were.
    assert learned.tokens_per_s(8, reach=1.1) < 0.75 * tokens_per_s(16)
    # As soon as instances are full again, the newer figure counts, and after an hour nothing is left of it.
    report(learned, 1200, 16, slower=1.5)
    assert learned.tokens_per_s(16) == pytest.approx(tokens_per_s(16) / 1.5, rel=0.02)
    report(learned, 3700, 4, slower=2.0)
    assert learned.tokens_per_s(16, reach=1.1) < 0.8 * tokens_per_s(16) / 1.5


def test_an_instance_with_a_slot_left_bounds_what_a_full_one_makes_by_reach_only() -> None:
    # 8 of 16: 444 tokens/s; 15 of 16: 600; and 16 make 615.
    assert curve(8, 15).tokens_per_s(16) == pytest.approx(tokens_per_s(16), rel=0.02)
    assert curve(8, 15).tokens_per_s(16, reach=1.1) > 600.0


@pytest.mark.parametrize(("running", "waiting"), [(16, 0), (15, 1)])
def test_an_instance_that_is_full_or_lets_requests_wait_makes_no_more_than_it_did(
    running: int, waiting: int
) -> None:
    learned = curve(running, waiting=waiting)
    assert learned.tokens_per_s(32) == pytest.approx(tokens_per_s(running))


def test_the_requests_that_run_at_a_throughput_are_those_that_make_it() -> None:
    learned = curve(2, 15)
    for running in (1, 4, 10, 15):
        assert learned.running_at(tokens_per_s(running)) == pytest.approx(running, rel=0.05)
    assert learned.running_at(0.0) == 0.0
    # However many run, they make 1,000 tokens a second at most.
    assert learned.running_at(1_100.0) == math.inf
