from __future__ import annotations

from typing import Any

import pytest

from chiron.cli.demo.figures import Figures, percentile
from chiron.cli.demo.kills import Losses
from chiron.cli.demo.run import lost, verdict
from chiron.cli.demo.tally import Tally, scaling
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2


def figures_of(*requests: tuple[float, float]) -> Figures:
    """TTFT SLO 100 ms, ITL SLO 10 ms; each request's (TTFT, mean ITL)."""
    figures = Figures(ttft_slo_ms=100.0, itl_slo_ms=10.0)
    for ttft_ms, itl_ms in requests:
        figures.interactive.requests += 1
        figures.interactive.finish(ttft_ms, itl_ms)
    return figures


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 50, 5.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 101)], 100, 100.0),
        ([1.0, 2.0], 0, 1.0),
        ([], 50, None),
    ],
)
def test_percentile_takes_the_nearest_rank(
    values: list[float], percent: float, expected: float | None
) -> None:
    assert percentile(values, percent) == expected


@pytest.mark.parametrize(
    ("ttft_ms", "itl_ms", "met"), [(100, 10, 1), (101, 10, 0), (100, 10.5, 0), (0.1, 0, 1)]
)
def test_an_slo_is_met_by_ttft_and_itl_together(ttft_ms: float, itl_ms: float, met: int) -> None:
    assert figures_of((ttft_ms, itl_ms)).interactive.met == met


def test_whatever_has_not_ended_well_has_missed() -> None:
    figures = figures_of((1, 1), (1, 1), (500, 1))
    figures.interactive.requests += 2
    figures.interactive.failed += 1

    assert figures.interactive.attainment == 2 / 5
    assert figures.interactive.outstanding == 1


def test_attainment_is_not_rounded_up_to_its_goal() -> None:
    figures = figures_of(*[(1.0, 1.0)] * 98_999)
    figures.interactive.requests = 100_000

    assert figures.summary()["interactive_attainment"] == 0.9899


def test_a_late_result_misses_its_deadline() -> None:
    figures = figures_of()
    figures.batches.items, figures.batches.succeeded, figures.batches.late = 10, 9, 2

    assert figures.summary()["batch_deadlines_met"] == 0.7


def test_nothing_asked_is_nothing_attained() -> None:
    summary = figures_of().summary()

    assert (summary["interactive_attainment"], summary["batch_deadlines_met"]) == (None, None)


def test_failures_beyond_a_hundred_do_not_pile_up() -> None:
    figures = figures_of()
    for number in range(1000):
        figures.failure(str(number))

    assert len(figures.errors) == 100


GOOD: dict[str, Any] = {
    "interactive_attainment": 0.99,
    "batch_deadlines_met": 1.0,
    "failed": 0,
    "scale_ups": 1,
    "scale_downs": 1,
    "role_changes": 1,
    "preemptions": 1,
    "resumed": 1,
    "gpu_seconds": 99.0,
    "gpu_seconds_static": 100.0,
    "noise_p99_ms": 60.0,
}


def test_a_run_that_kept_every_promise_is_as_it_should_be() -> None:
    assert verdict(GOOD, kills=True) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"interactive_attainment": 0.9899}, "interactive_attainment is 0.9899"),
        ({"interactive_attainment": None}, "interactive_attainment is None"),
        ({"batch_deadlines_met": 0.9999}, "batch_deadlines_met is 0.9999"),
        ({"failed": 2}, "2 requests failed"),
        ({"scale_ups": 0}, "scale_ups is 0"),
        ({"scale_downs": 0}, "scale_downs is 0"),
        ({"role_changes": 0}, "role_changes is 0"),
        ({"preemptions": 0}, "preemptions is 0"),
        ({"resumed": 0}, "resumed is 0"),
        ({"gpu_seconds": 100.0}, "100.0 GPU-seconds"),
        ({"gpu_seconds": 0.0}, "0.0 GPU-seconds"),
        ({"noise_p99_ms": 61.0}, "61 ms"),
    ],
)
def test_each_promise_that_was_not_kept_is_a_reason(change: dict[str, Any], reason: str) -> None:
    (said,) = verdict(GOOD | change, kills=True)

    assert reason in said


def test_what_was_not_killed_need_not_be_resumed() -> None:
    assert verdict(GOOD | {"resumed": 0}, kills=False) == []


def test_the_fixed_fleet_is_no_promise_where_none_serves() -> None:
    assert verdict(GOOD | {"gpu_seconds_static": None}, kills=True) == []


@pytest.mark.parametrize(
    ("losses", "reasons"),
    [
        (Losses(workers=1, agents=1, leaders=1, restarted=1, recovered=2), []),
        (Losses(workers=3, restarted=2), ["1 of 3 killed workers did not come back"]),
        (Losses(agents=1, leaders=1, recovered=1), ["the control plane did not come back"]),
    ],
)
def test_what_did_not_come_back_is_named(losses: Losses, reasons: list[str]) -> None:
    assert lost(losses) == reasons


def seen(*instances: tuple[str, int, int]) -> pb.ClusterSnapshot:
    """(instance id, incarnation, preempted so far)."""
    snapshot = pb.ClusterSnapshot()
    for instance_id, incarnation, preempted in instances:
        one = snapshot.instances.add(
            instance_id=instance_id, incarnation=incarnation, node_id=instance_id, gpu_indexes=[0]
        )
        one.load.preempted_for_interactive = preempted
    return snapshot


def test_preemptions_outlive_the_workers_that_made_them() -> None:
    tally = Tally()
    tally.see(seen(("a", 1, 2), ("b", 1, 5)), 0.0)
    tally.see(seen(("a", 1, 3)), 1.0)
    tally.see(seen(("a", 2, 1)), 2.0)

    assert tally.preemptions == 3 + 5 + 1


def test_gpu_seconds_are_what_was_held_for_as_long_as_it_was() -> None:
    tally = Tally()
    tally.see(seen(("a", 1, 0)), 10.0)
    tally.gpu_seconds = 0.0
    tally.see(seen(("a", 1, 0), ("b", 1, 0), ("c", 1, 0)), 12.0)
    tally.see(seen(("a", 1, 0)), 13.0)
    tally.until(17.0)

    assert tally.gpu_seconds == 2 * 1 + 1 * 3 + 4 * 1
    assert tally.most_gpus == 3


def test_an_instance_that_is_over_holds_no_gpu() -> None:
    tally, snapshot = Tally(), seen(("a", 1, 0), ("b", 1, 0))
    snapshot.instances[0].state = types_pb2.INSTANCE_STATE_FAILED
    tally.see(snapshot, 0.0)
    tally.until(1.0)

    assert tally.gpu_seconds == 1.0


def test_scaling_is_counted_by_what_it_did() -> None:
    acts = ["start", "start", "wake", "retire", "sleep", "change_role", "place", "stop", "advised"]

    assert scaling(pb.Decision(action=act) for act in acts) == {
        "scale_ups": 3,
        "scale_downs": 2,
        "role_changes": 1,
    }
