"""Traces: a rate reached by compressing a trace or by laying copies of it over each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chiron.sim.trace_formats import TraceError
from chiron.sim.traces import Trace, compressed, first_requests, multiplied


def trace_of(count: int, rate_per_s: float) -> Trace:
    generator = np.random.default_rng(1)
    times = np.cumsum(generator.exponential(1 / rate_per_s, count))
    tokens = np.arange(1, count + 1, dtype=np.int32)
    return Trace(Path("made"), "azure", times - times[0], tokens, tokens)


def test_compressing_keeps_every_request_and_the_pattern() -> None:
    trace = trace_of(1000, 5.0)

    faster = compressed(trace, 50.0)

    assert faster.rate_per_s == pytest.approx(50.0)
    assert len(faster) == 1000
    assert faster.arrival_s is not None
    assert trace.arrival_s is not None
    np.testing.assert_allclose(
        faster.arrival_s / trace.arrival_s[-1],
        trace.arrival_s / trace.arrival_s[-1] * trace.rate_per_s / 50.0,
    )


@pytest.mark.parametrize("rate_per_s", [2.0, 5.0, 12.5])
def test_multiplying_keeps_the_span_and_reaches_the_rate(rate_per_s: float) -> None:
    trace = trace_of(20_000, 5.0)
    assert trace.arrival_s is not None
    span = trace.arrival_s[-1]

    scaled = multiplied(trace, rate_per_s, np.random.default_rng(2), jitter_s=30.0)

    assert scaled.arrival_s is not None
    # Only the fraction of a copy is random: a Bernoulli variable per request, at most 1/4 in variance.
    expected = len(trace) * rate_per_s / trace.rate_per_s
    assert abs(len(scaled) - expected) <= 5 * np.sqrt(len(trace) / 4)
    assert (np.diff(scaled.arrival_s) >= 0).all()
    assert scaled.arrival_s[0] >= 0
    assert scaled.arrival_s[-1] <= span
    # Every copy is one of the trace's requests, moved by no more than the jitter.
    original = trace.arrival_s[scaled.prompt_tokens - 1]
    assert np.abs(scaled.arrival_s - original).max() <= 30.0
    assert (scaled.output_tokens == scaled.prompt_tokens).all()


def test_multiplying_is_repeated_by_its_seed() -> None:
    trace = trace_of(500, 5.0)

    once, again = (multiplied(trace, 17.0, np.random.default_rng(9)) for _ in range(2))

    np.testing.assert_array_equal(once.arrival_s, again.arrival_s)
    np.testing.assert_array_equal(once.prompt_tokens, again.prompt_tokens)


def test_a_rate_that_cannot_be_is_refused() -> None:
    trace = trace_of(10, 5.0)

    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(TraceError, match="rate_per_s: must be a number > 0"):
            compressed(trace, rate)
    with pytest.raises(TraceError, match="arrive at once"):
        multiplied(first_requests(trace, 1), 5.0, np.random.default_rng(0))
