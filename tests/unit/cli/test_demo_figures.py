from __future__ import annotations

from dataclasses import replace

import pytest

from chiron.cli.demo.figures import Figures, StreamMeter, percentile
from chiron.cli.demo.kills import Losses
from chiron.cli.demo.run import verdict


def finished_run() -> Figures:
    figures = Figures()
    figures.counts["interactive"].requests = figures.counts["interactive"].finished = 3
    figures.counts["interactive"].resumed = 1
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


def test_the_first_token_is_timed_from_the_arrival_and_the_others_from_each_other() -> None:
    figures = Figures()
    meter = StreamMeter(figures, "interactive", arrived=10.0)

    meter.delivered(1, 10.5)
    meter.delivered(1, 10.75)
    meter.delivered(1, 11.0)

    assert list(figures.ttft_ms["interactive"]) == [500.0]
    assert list(figures.itl_ms) == [250.0, 250.0]
    assert figures.tokens == meter.tokens == 3


def test_tokens_that_travel_together_share_the_gap_before_them() -> None:
    figures = Figures()
    meter = StreamMeter(figures, "batch", arrived=0.0)

    meter.delivered(3, 1.0)
    meter.delivered(4, 2.0)

    assert list(figures.ttft_ms["batch"]) == [1000.0]
    assert list(figures.itl_ms) == [250.0] * 4


def test_a_chunk_without_tokens_is_no_first_token() -> None:
    figures = Figures()
    meter = StreamMeter(figures, "batch", arrived=0.0)

    meter.delivered(0, 1.0)
    meter.delivered(1, 2.0)

    assert list(figures.ttft_ms["batch"]) == [2000.0]


def test_the_summary_adds_both_classes_and_keeps_them_apart() -> None:
    figures = Figures()
    for kind, sent, failed in (("interactive", 10, 1), ("batch", 4, 0)):
        count = figures.counts[kind]
        count.requests, count.failed, count.interrupted, count.finished = sent, failed, failed, sent - failed
        StreamMeter(figures, kind, arrived=0.0).delivered(5, 0.1 if kind == "interactive" else 0.3)

    summary = figures.summary(duration_s=2.0)

    assert (summary["requests"], summary["failed"], summary["interrupted"]) == (14, 1, 1)
    assert (summary["tokens"], summary["tokens_per_s"]) == (10, 5.0)
    assert (summary["ttft_p50_ms"], summary["ttft_p99_ms"]) == (100.0, 300.0)
    assert summary["interactive"] == {
        "requests": 10,
        "finished": 9,
        "failed": 1,
        "interrupted": 1,
        "resumed": 0,
        "retried": 0,
        "shed": 0,
        "ttft_p50_ms": 100.0,
        "ttft_p99_ms": 100.0,
    }


ALL_BACK = Losses(workers=1, agents=1, leaders=1, restarted=1, recovered=2)


def test_a_run_after_which_everything_came_back_is_as_it_should_be() -> None:
    assert verdict(finished_run(), ALL_BACK) == []


@pytest.mark.parametrize(
    ("change", "losses", "reason"),
    [
        (lambda f: f.failure("INTERNAL: broken"), ALL_BACK, "INTERNAL: broken"),
        (lambda f: setattr(f.counts["batch"], "shed", 2), ALL_BACK, "2 arrivals were shed"),
        (lambda f: setattr(f.counts["batch"], "requests", 1), ALL_BACK, "1 requests had not ended"),
        (lambda f: setattr(f.counts["interactive"], "resumed", 0), ALL_BACK, "no stream was resumed"),
        (lambda f: None, Losses(), "no worker was killed"),
        (lambda f: None, Losses(workers=3, restarted=2), "1 of 3 killed workers did not come back"),
        (lambda f: None, replace(ALL_BACK, recovered=1), "the control plane did not come back"),
    ],
)
def test_each_thing_that_went_wrong_is_a_reason(change, losses: Losses, reason: str) -> None:  # type: ignore[no-untyped-def]
    figures = finished_run()
    change(figures)

    (said,) = verdict(figures, losses)

    assert reason in said


def test_a_run_without_a_finished_request_is_wrong() -> None:
    assert "no request finished" in verdict(Figures(), ALL_BACK)


def test_failures_beyond_a_hundred_do_not_pile_up() -> None:
    figures = Figures()
    for number in range(1000):
        figures.failure(str(number))

    assert len(figures.errors) == 100
