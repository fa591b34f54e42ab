"""Groups equal a naive clustering, serve in deadline order, and cost O(log n) comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.groups import GroupedRequest, RequestGroups

WIDTH_S = 30.0
SPAN = 4

deadlines = st.lists(st.floats(0.0, 2_000.0, allow_nan=False), max_size=60)


def naive(requests: Sequence[GroupedRequest]) -> list[list[GroupedRequest]]:
    """Sort by cell; cut where a cell is skipped or a span ends."""
    groups: list[list[GroupedRequest]] = []
    last = None
    for request in sorted(requests, key=lambda r: math.floor(r.deadline_s / WIDTH_S)):
        cell = math.floor(request.deadline_s / WIDTH_S)
        if last is None or cell > last + 1 or cell // SPAN != last // SPAN:
            groups.append([])
        groups[-1].append(request)
        last = cell
    return groups


@given(deadlines, st.sets(st.integers(0, 59)))
def test_groups_after_any_insertions_and_removals_are_those_of_a_clustering_from_scratch(
    times: list[float], removed: set[int]
) -> None:
    groups = RequestGroups(WIDTH_S, SPAN)
    requests = [GroupedRequest(i, t, arrived_s=float(i), prompt_tokens=i) for i, t in enumerate(times)]
    for request in requests:
        groups.add(request)
    for index in removed & set(range(len(requests))):
        groups.remove(index)
    left = [r for r in requests if r.request_id not in removed]
    expected = [
        (min(r.deadline_s for r in group), len(group), sum(r.prompt_tokens for r in group))
        for group in naive(left)
    ]
    assert [(g.earliest_deadline_s, g.requests, g.prompt_tokens) for g in groups.groups()] == expected
    assert len(groups) == len(left)


@given(deadlines)
def test_requests_leave_group_by_group_and_first_come_first_served_within_one(times: list[float]) -> None:
    groups = RequestGroups(WIDTH_S, SPAN)
    # Arrival runs against insertion: the place in the group comes from the arrival.
    requests = [GroupedRequest(i, t, arrived_s=-float(i)) for i, t in enumerate(times)]
    for request in requests:
        groups.add(request)
    while requests:
        # What has left no longer joins its neighbours: the clustering is always that of those who wait.
        first = min(naive(requests)[0], key=lambda r: r.arrived_s)
        assert groups.pop() == first
        requests.remove(first)
    assert groups.pop() is None


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_deadlines_in_one_group_are_less_than_one_span_apart(first: float, second: float) -> None:
    groups = RequestGroups(WIDTH_S, SPAN)
    groups.add(GroupedRequest("a", first, 0.0))
    groups.add(GroupedRequest("b", second, 0.0))
    assert len(groups.groups()) == 2 or abs(first - second) < WIDTH_S * SPAN


class Counted(float):
    """A time that counts how often it is compared."""

    comparisons = 0

    def __lt__(self, other: float) -> bool:
        Counted.comparisons += 1
        return float.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


def comparisons_per_request(count: int) -> float:
    groups = RequestGroups(WIDTH_S, SPAN)
    # Each request is due before all the others and came before them: the worst order for a heap.
    requests = [
        GroupedRequest(i, Counted(10_000.0 - i * 100.0 / count), Counted(-float(i))) for i in range(count)
    ]
    Counted.comparisons = 0
    for request in requests:
        groups.add(request)
    for request in requests[::2]:
        groups.remove(request.request_id)
    while groups.pop():
        pass
    return Counted.comparisons / count


def test_a_request_costs_logarithmic_comparisons() -> None:
    small, large = comparisons_per_request(1_000), comparisons_per_request(32_000)
    # Five doublings: a logarithmic cost grows by half, a linear one by the factor 32.
    assert large < 2 * small
    assert large < 12 * math.log2(32_000)


def test_an_id_that_waits_and_a_deadline_that_is_not_finite_are_refused() -> None:
    groups = RequestGroups()
    groups.add(GroupedRequest("a", 1.0, 0.0))
    with pytest.raises(ValueError, match="'a' waits already"):
        groups.add(GroupedRequest("a", 2.0, 0.0))
    with pytest.raises(ValueError, match="deadline_s of 'b' must be finite"):
        groups.add(GroupedRequest("b", math.inf, 0.0))
    with pytest.raises(KeyError):
        groups.remove("c")


def test_a_request_that_returns_after_preemption_keeps_its_place() -> None:
    groups = RequestGroups(WIDTH_S, SPAN)
    for number in range(3):
        groups.add(GroupedRequest(number, 100.0, arrived_s=float(number)))
    first = groups.pop()
    assert first is not None
    groups.add(first)
    assert groups.pop() == first


def test_a_request_that_returns_keeps_its_place_among_those_that_came_with_it() -> None:
    groups = RequestGroups(WIDTH_S, SPAN)
    # A file: all arrive at once and are due at once.
    for number in range(5):
        groups.add(GroupedRequest(number, 100.0, arrived_s=0.0, place=number))
    first, second = groups.pop(), groups.pop()
    assert first is not None
    assert second is not None
    groups.add(second)
    groups.add(first)
    assert groups.oldest() == first
    assert [groups.pop() for _ in range(2)] == [first, second]
    left = groups.pop()
    assert left is not None
    assert left.request_id == 2


def test_the_backlog_counts_deadlines_from_now() -> None:
    groups = RequestGroups(WIDTH_S, SPAN)
    groups.add(GroupedRequest("late", 95.0, 0.0, prompt_tokens=5))
    groups.add(GroupedRequest("far", 900.0, 0.0, prompt_tokens=7))
    assert [(b.deadline_in_s, b.requests, b.prompt_tokens) for b in groups.backlog(100.0)] == [
        (-5.0, 1, 5),
        (800.0, 1, 7),
    ]
