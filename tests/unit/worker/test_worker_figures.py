"""Latencies, pace of a request, saturation."""

from __future__ import annotations

import pytest

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.base import ChoiceDelta, EngineOutput
from services.worker.meter import Meter, mean_itl_ms, quantile_itl_ms
from services.worker.pace import Pace
from services.worker.saturation import Saturation, saturated


def output(time: float, tokens: int, choice: int = 0, **options: float) -> EngineOutput:
    return EngineOutput([ChoiceDelta(choice, list(range(tokens)), "", [])], time, **options)  # type: ignore[arg-type]


def test_an_interval_holds_its_own_tokens_only() -> None:
    meter = Meter()
    meter.tokens(5.0, 100, now=1.0)
    before = meter.read()
    meter.tokens(0.010, 90, now=2.0)
    meter.tokens(0.100, 10, now=2.1)
    after = meter.read()
    assert mean_itl_ms(before, after) == pytest.approx(19.0)
    assert quantile_itl_ms(before, after, 0.90) == pytest.approx(10.0, rel=0.03)
    assert quantile_itl_ms(before, after, 0.95) == pytest.approx(100.0, rel=0.03)
    assert quantile_itl_ms(after, after, 0.95) == mean_itl_ms(after, after) == 0


@pytest.mark.parametrize("gap_s", [0.0, 1e-6, 1000.0])
def test_latencies_beyond_the_scale_are_counted_at_its_ends(gap_s: float) -> None:
    meter = Meter()
    before = meter.read()
    meter.tokens(gap_s, 1, now=1.0)
    assert sum(meter.read().itl_buckets) == 1
    assert mean_itl_ms(before, meter.read()) == pytest.approx(1e3 * gap_s)


def test_recent_latency_forgets_after_a_second() -> None:
    meter = Meter()
    meter.tokens(0.5, 1, now=10.0)
    assert meter.recent_itl_ms(10.1) == pytest.approx(500)
    for index in range(20):
        meter.tokens(0.1, 1, now=10.5 + index / 10)
    assert meter.recent_itl_ms(12.4) == pytest.approx(100)
    assert meter.recent_itl_ms(14.0) == 0


def test_times_of_a_request() -> None:
    pace = Pace(Meter(), arrival=100.0, elapsed_ms=50.0, prompt_tokens=7)
    for step in (
        output(100.2, 1, queue_s=0.1),
        output(100.3, 1),
        output(100.7, 2, preemptions=1, queue_s=0.1),
    ):
        pace.add(step)
    timing = pace.timing("i")
    assert timing.ttft_ms == pytest.approx(50 + 200)
    assert timing.queue_ms == pytest.approx(100)
    assert timing.itl_mean_ms == pytest.approx(500 / 3)
    assert timing.itl_max_ms == pytest.approx(200), "two tokens share the 400 ms that they took together"
    assert timing.total_ms == pytest.approx(700)
    assert (timing.preemptions, pace.usage().completion_tokens, pace.usage().prompt_tokens) == (1, 4, 7)


def test_choices_have_paces_of_their_own() -> None:
    meter = Meter()
    pace = Pace(meter, 0.0, 0.0, 1)
    for time, choice in ((1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)):
        pace.add(output(time, 1, choice))
    assert pace.itl_mean_ms == pytest.approx(1000)
    assert meter.read().itl_count == 2


def test_one_token_has_no_time_between_tokens() -> None:
    pace = Pace(Meter(), 0.0, 0.0, 1)
    pace.add(output(1.0, 1))
    assert pace.timing("i") == pb.Timing(ttft_ms=1000, total_ms=1000, instance_id="i")


def test_time_counts_as_full_while_requests_wait_or_slots_are_taken() -> None:
    saturation = Saturation()
    saturation.note(running=8, waiting=0, batch_size=10, now=10.0)
    assert saturation.full_s(11.0) == 0.0, "a fifth of the slots is free"
    saturation.note(running=9, waiting=0, batch_size=10, now=11.0)
    assert saturation.full_s(12.0) == 1.0, "one slot is being handed over"
    saturation.note(running=1, waiting=1, batch_size=10, now=13.0)
    assert saturation.full_s(14.0) == 3.0, "somebody waits: for KV cache, if not for a slot"
    saturation.note(running=0, waiting=0, batch_size=10, now=15.0)
    assert saturation.full_s(20.0) == 4.0


def test_an_interval_is_saturated_that_was_full_but_for_moments() -> None:
    assert saturated(full_s=0.95, interval_s=1.0)
    assert not saturated(full_s=0.85, interval_s=1.0)
    assert not saturated(full_s=0.0, interval_s=0.0), "it covers no time"
