"""What the benchmark of the engine model's predictions makes of its measurements."""

from __future__ import annotations

import os
import time

import pytest

from bench.engine_prediction import EngineClock, isotonic


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], []),
        ([1.0, 2.0, 2.0, 5.0], [1.0, 2.0, 2.0, 5.0]),
        ([1.0, 4.0, 2.0, 5.0], [1.0, 3.0, 3.0, 5.0]),
        # One pool leads to the next: the mean of all four weighs each of them alike.
        ([3.0, 9.0, 8.0, 4.0, 7.0], [3.0, 7.0, 7.0, 7.0, 7.0]),
        ([4.0, 3.0, 2.0], [3.0, 3.0, 3.0]),
    ],
)
def test_values_that_fall_are_pooled_to_their_mean(values: list[float], found: list[float]) -> None:
    assert isotonic(values) == pytest.approx(found)


def test_the_engines_clock_is_the_processs_cpu_time_and_can_be_set_forward() -> None:
    clock = EngineClock(os.getpid())
    before, began = time.process_time(), clock.now()
    while time.process_time() - before < 0.02:
        pass
    assert began <= before + 0.02 <= clock.now() <= time.process_time()
    ahead = clock.now() + 100.0
    clock.skip_to(ahead)
    assert ahead <= clock.now() < ahead + 50.0
    clock.skip_to(ahead - 50.0)
    assert clock.now() >= ahead, "it never goes back"
