"""Client-side times from the arrivals of tokens."""

from __future__ import annotations

import pytest

from chiron.client.stopwatch import Stopwatch


def test_nothing_arrived_means_zero():
    watch = Stopwatch(10.0)
    assert (watch.ttft_ms, watch.itl_mean_ms, watch.itl_max_ms) == (0, 0, 0)


def test_the_first_token_is_timed_from_the_start_of_the_request():
    watch = Stopwatch(10.0)
    watch.tokens(0, 1, 10.25)
    watch.tokens(0, 1, 11.0)
    assert watch.ttft_ms == pytest.approx(250)
    assert watch.since_start_ms(11.5) == pytest.approx(1500)


def test_the_mean_counts_every_token_and_the_longest_every_delivery():
    watch = Stopwatch(0.0)
    watch.tokens(0, 1, 1.0)
    watch.tokens(0, 4, 1.4)
    watch.tokens(0, 1, 1.5)
    # 0.5 s for the five tokens after the first.
    assert watch.itl_mean_ms == pytest.approx(100)
    assert watch.itl_max_ms == pytest.approx(400)


def test_choices_are_timed_apart():
    watch = Stopwatch(0.0)
    watch.tokens(0, 1, 1.0)
    watch.tokens(1, 1, 3.0)
    watch.tokens(0, 1, 3.5)
    watch.tokens(1, 1, 3.5)
    # Choice 0 waited 2.5 s for its second token, choice 1 waited 0.5 s.
    assert watch.itl_mean_ms == pytest.approx(1500)
    assert watch.itl_max_ms == pytest.approx(2500)
