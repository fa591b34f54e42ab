"""Retries are held to a share of the requests, above a floor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.client.budget import RetryBudget


def spendable(budget: RetryBudget, now: float) -> int:
    """Retries that can be paid for at one moment."""
    before = budget.spent
    while budget.spend(now):
        pass
    return budget.spent - before


def test_who_has_asked_nothing_yet_may_retry_as_often_as_the_floor_allows() -> None:
    budget = RetryBudget(0.0, floor_per_s=2.0, window_s=5.0)
    assert spendable(budget, 0.0) == 10
    assert spendable(budget, 1.0) == 2
    assert spendable(budget, 100.0) == 10


def test_eight_requests_pay_for_one_retry_where_the_share_is_an_eighth() -> None:
    budget = RetryBudget(0.0, share=0.125, floor_per_s=0.0)
    for _ in range(40):
        budget.request(0.0)
    assert spendable(budget, 0.0) == 5
    assert budget.refused == 1


def test_what_requests_paid_in_is_not_kept_for_long() -> None:
    budget = RetryBudget(0.0, share=0.1, floor_per_s=0.0, window_s=10.0)
    for _ in range(1000):
        budget.request(0.0)
    assert spendable(budget, 10.0) == 0


def test_a_clock_that_steps_back_pays_nothing() -> None:
    budget = RetryBudget(10.0, floor_per_s=1.0, window_s=1.0)
    assert spendable(budget, 10.0) == 1
    assert spendable(budget, 0.0) == 0
    assert spendable(budget, 10.5) == 0


@given(
    share=st.floats(0.0, 1.0),
    floor=st.floats(0.0, 5.0),
    steps=st.lists(st.tuples(st.floats(0.0, 3.0), st.booleans()), max_size=200),
)
def test_retries_never_exceed_the_share_and_the_floor(
    share: float, floor: float, steps: list[tuple[float, bool]]
) -> None:
    budget, now, requests = RetryBudget(0.0, share=share, floor_per_s=floor, window_s=4.0), 0.0, 0
    for passed, is_request in steps:
        now += passed
        if is_request:
            budget.request(now)
            requests += 1
        else:
            budget.spend(now)
        assert budget.spent <= share * requests + floor * (4.0 + now) + 1e-6


@pytest.mark.parametrize("failing", [0.01, 0.05])
def test_a_service_that_fails_now_and_then_has_every_failure_retried(failing: float) -> None:
    budget, failures = RetryBudget(0.0, floor_per_s=1.0), 0.0
    for i in range(10_000):
        budget.request(i / 100)
        failures += failing
        if failures >= 1:
            failures -= 1
            assert budget.spend(i / 100)
