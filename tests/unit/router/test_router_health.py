"""When an instance is trusted, ejected and tried again, on a clock that the test holds."""

from __future__ import annotations

import pytest

from services.router.health import EjectionSettings, Health

SETTINGS = EjectionSettings(failures=3, first_s=1.0, longest_s=8.0)


def health(jitter: float = 1.0) -> Health:
    return Health(SETTINGS, lambda: jitter)


def ejected(one: Health, now: float) -> float:
    """Fails it until it is ejected; returns for how long."""
    while not one.failed(now, trial=not one.trusted):
        pass
    return one.until - now


def test_failures_in_a_row_eject_and_an_answer_between_them_does_not() -> None:
    one = health()
    assert [one.failed(0.0, trial=False) for _ in range(2)] == [False, False]
    one.answered(0.0)
    assert [one.failed(0.0, trial=False) for _ in range(3)] == [False, False, True]
    assert one.reason == "3 failures in a row"
    assert not one.open_for_trial(0.99)
    assert one.open_for_trial(1.0)


def test_each_failed_trial_doubles_the_ejection_up_to_the_longest() -> None:
    one = health()
    lengths = [ejected(one, now) for now in (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)]
    assert lengths == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_requests_sent_before_an_ejection_do_not_prolong_it() -> None:
    one = health()
    ejected(one, 0.0)
    assert not one.failed(0.5, trial=False)
    assert one.until == 1.0


def test_an_answer_reinstates_it_and_the_next_ejection_is_longer_unless_it_did_well_for_long() -> None:
    one = health()
    ejected(one, 0.0)
    assert one.answered(1.0)
    assert one.trusted
    assert ejected(one, 2.0) == 2.0
    one.answered(5.0)
    assert ejected(one, 5.0 + SETTINGS.longest_s + 0.1) == 1.0


def test_a_first_loss_may_be_tried_as_soon_as_it_is_heard_again_a_second_one_after_a_pause() -> None:
    one = health()
    one.lost(0.0, "connection lost")
    assert one.reason == "connection lost"
    assert one.open_for_trial(0.0)
    one.lost(0.0, "silent for 3.0 s")
    assert one.until == 2.0


@pytest.mark.parametrize("jitter", [0.75, 1.25])
def test_the_length_is_jittered(jitter: float) -> None:
    assert ejected(health(jitter), 0.0) == jitter
