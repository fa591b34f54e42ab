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


def stepping(*reports: tuple[int, float], batch_size: int = 100) -> ThroughputCurve:
    """After a minute of reports of so many running requests and tokens in a step."""
    learned = ThroughputCurve()
    for _ in range(60):
        for running, step_tokens in reports:
            learned.see(
                FleetInstance(
                    "i",
                    "n",
                    Role.MIXED,
                    Phase.READY,
                    batch_size,
                    batch_size,
                    running_interactive=running,
                    step_tokens=step_tokens,
                )
            )
        learned.learn(1.0)
    return learned


def test_slots_are_what_fills_the_steps_where_that_is_less() -> None:
    # 20 requests with 2 tokens of prompt for each of their own fill steps of 60: 120 would fill steps of 360.
    learned = stepping((20, 60.0))
    assert learned.slots(100, 0, 360.0) == 100.0
    assert learned.slots(100, 0, 240.0) == pytest.approx(80.0)
    assert learned.slots(100, 0, 1.0) == 1.0
    # Nothing is known of the steps, or they do not count.
    assert learned.slots(100, 0, 0.0) == learned.slots(100, 0) == 100.0
    assert stepping((20, 0.0)).slots(100, 0, 1.0) == 100.0


def test_instances_count_in_steps_by_the_requests_that_run_there() -> None:
    # 10 and 30 requests, 20 and 180 tokens: 5 for each. One that is idle says nothing.
    assert stepping((10, 20.0), (30, 180.0), (0, 0.0)).slots(100, 0, 250.0) == pytest.approx(50.0)


def test_the_shorter_of_kv_space_and_steps_decides() -> None:
    learned = ThroughputCurve()
    for _ in range(60):
        learned.see(
            FleetInstance(
                "i",
                "n",
                Role.MIXED,
                Phase.READY,
                100,
                100,
                running_interactive=20,
                step_tokens=60.0,
                kv_usage=0.5,
                kv_capacity_tokens=1000,
            )
        )
        learned.learn(1.0)
    # 25 tokens of KV cache for each: 0.92 of 1,000 hold 36.8. Steps of 90 tokens are full with 30.
    assert learned.slots(100, 1000, 360.0) == pytest.approx(36.8)
    assert learned.slots(100, 1000, 90.0) == pytest.approx(30.0)


def test_requests_that_run_are_not_below_none_where_all_time_grows_with_them() -> None:
    # Twice the requests take twice as long, to the last digit: rounding may leave less than no fixed time.
    learned = ThroughputCurve()
    for _ in range(3):
        for running in (7, 58):
            learned.see(
                FleetInstance(
                    "i",
                    "n",
                    Role.MIXED,
                    Phase.READY,
                    64,
                    64,
                    running_interactive=running,
                    tokens_per_s=running / (0.0013 * running * running),
                )
            )
        learned.learn(1.0)
    assert learned.itl_s(0.0) == pytest.approx(0.0, abs=1e-12)
    assert learned.running_at(1.0) >= 0.0
