from __future__ import annotations

from chiron.cluster.keeping import RestartBudget


def test_a_service_that_ends_now_and_then_is_always_started_again() -> None:
    budget = RestartBudget(most=3, within_s=60)
    assert all(budget.spend(now) for now in range(0, 1000, 20))


def test_one_that_ends_time_and_again_is_not() -> None:
    budget = RestartBudget(most=3, within_s=60)
    assert [budget.spend(now) for now in (0, 1, 2, 3)] == [True, True, True, False]


def test_a_budget_of_nothing_starts_nothing_again() -> None:
    assert not RestartBudget(most=0, within_s=60).spend(0)
