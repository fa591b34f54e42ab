"""Each discipline serves in its order and starves nobody."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.batch_queue import BatchQueue
from chiron.policy.disciplines import UnknownDisciplineError, Waiting, load_discipline
from chiron.policy.groups import GroupedRequest

STARVATION_S = 50.0
names = st.sampled_from(["fcfs", "edf", "mlfq"])
queues = st.lists(
    st.tuples(st.floats(0, 40), st.floats(0, 1_000) | st.just(math.inf), st.integers(0, 5_000)), max_size=40
)


def waiting(queue: list[tuple[float, float, int]]) -> list[Waiting]:
    return [Waiting(i, arrived, deadline, tokens) for i, (arrived, deadline, tokens) in enumerate(queue)]


def order(name: str, requests: list[Waiting], now_s: float) -> list[Waiting]:
    discipline = load_discipline(name, STARVATION_S)
    for request in requests:
        discipline.push(request)
    taken = []
    while (request := discipline.pop(now_s)) is not None:
        taken.append(request)
    return taken


@given(names, queues)
def test_everybody_is_served_exactly_once(name: str, queue: list[tuple[float, float, int]]) -> None:
    requests = waiting(queue)
    assert sorted(r.request_id for r in order(name, requests, 40.0)) == list(range(len(requests)))


@given(queues)
def test_before_anybody_starves_each_discipline_keeps_its_order(
    queue: list[tuple[float, float, int]],
) -> None:
    requests = waiting(queue)
    now_s = 40.0
    fcfs, edf = order("fcfs", requests, now_s), order("edf", requests, now_s)
    assert fcfs == sorted(requests, key=lambda r: r.arrived_s)
    assert edf == sorted(requests, key=lambda r: (r.deadline_s, r.arrived_s))
    levels = [(r.attained_tokens // 256).bit_length() for r in order("mlfq", requests, now_s)]
    assert levels == sorted(levels)


@given(names, queues, st.floats(40.0, 200.0))
def test_who_has_waited_the_bound_is_passed_only_by_those_who_came_before(
    name: str, queue: list[tuple[float, float, int]], now_s: float
) -> None:
    taken = order(name, waiting(queue), now_s)
    for position, request in enumerate(taken):
        if now_s - request.arrived_s >= STARVATION_S:
            assert all(earlier.arrived_s <= request.arrived_s for earlier in taken[:position])


batches = st.lists(
    st.tuples(st.floats(0, 40), st.floats(0, 1_000), st.integers(0, 5_000)), min_size=1, max_size=40
)


def batch_order(
    name: str, rows: list[tuple[float, float, int]], now_s: float
) -> list[tuple[float, float, int]]:
    queue = BatchQueue(name, STARVATION_S)
    for number, (arrived_s, deadline_s, tokens) in enumerate(rows):
        queue.add(GroupedRequest(number, deadline_s, arrived_s), tokens)
    taken = []
    while (number := queue.pop(now_s)) is not None:
        assert isinstance(number, int)
        taken.append(rows[number])
    assert len(queue) == 0
    return taken


@given(names, batches, st.floats(40.0, 200.0))
def test_a_batch_request_that_has_waited_the_bound_is_passed_only_by_those_who_came_before(
    name: str, rows: list[tuple[float, float, int]], now_s: float
) -> None:
    taken = batch_order(name, rows, now_s)
    assert sorted(taken) == sorted(rows)
    for position, (arrived_s, _, _) in enumerate(taken):
        if now_s - arrived_s >= STARVATION_S:
            assert all(earlier <= arrived_s for earlier, _, _ in taken[:position])


@given(names, st.integers(1, 30))
def test_nobody_is_passed_for_longer_than_the_bound_however_many_come(name: str, every: int) -> None:
    # Long attained service and a late deadline: every discipline but fcfs lets the newcomers pass.
    queue = BatchQueue(name, STARVATION_S)
    queue.add(GroupedRequest("old", 1e6, 0.0), 10_000)
    now_s, number = 0.0, 0
    while "old" in queue:
        now_s += 1.0
        for _ in range(every):
            number += 1
            queue.add(GroupedRequest(number, now_s + 10.0, now_s))
        queue.pop(now_s)
        assert now_s <= STARVATION_S + 1.0


@given(batches)
def test_before_anybody_starves_a_batch_queue_keeps_its_order(rows: list[tuple[float, float, int]]) -> None:
    fcfs, mlfq = batch_order("fcfs", rows, 40.0), batch_order("mlfq", rows, 40.0)
    assert [row[0] for row in fcfs] == sorted(row[0] for row in rows)
    levels = [(row[2] // 256).bit_length() for row in mlfq]
    assert levels == sorted(levels)
    # Groups span at most 4 cells of 30 s.
    edf = batch_order("edf", rows, 40.0)
    assert all(later[1] > earlier[1] - 120.0 for earlier, later in pairwise(edf))


@given(names, batches)
def test_groups_are_told_whatever_the_discipline(name: str, rows: list[tuple[float, float, int]]) -> None:
    queue = BatchQueue(name, STARVATION_S)
    for number, (arrived_s, deadline_s, tokens) in enumerate(rows):
        queue.add(GroupedRequest(number, deadline_s, arrived_s), tokens)
    assert sum(group.requests for group in queue.groups()) == len(rows) == len(queue)
    assert queue.ahead(1e9) == len(rows)
    for number in range(len(rows)):
        queue.remove(number)
    assert queue.groups() == ()
    assert queue.peek(1_000.0) is None


@given(names, queues, st.sets(st.integers(0, 39)))
def test_a_removed_request_is_never_served(
    name: str, queue: list[tuple[float, float, int]], removed: set[int]
) -> None:
    discipline = load_discipline(name, STARVATION_S)
    requests = waiting(queue)
    for request in requests:
        discipline.push(request)
    gone = removed & set(range(len(requests)))
    for index in gone:
        discipline.remove(index)
    assert len(discipline) == len(requests) - len(gone)
    while (taken := discipline.pop(0.0)) is not None:
        assert taken.request_id not in gone


def test_short_work_passes_a_long_request_under_mlfq() -> None:
    long = Waiting("long", 0.0, 10.0, attained_tokens=2_000)
    short = Waiting("short", 5.0, math.inf, attained_tokens=0)
    assert [r.request_id for r in order("mlfq", [long, short], 6.0)] == ["short", "long"]
    assert [r.request_id for r in order("edf", [long, short], 6.0)] == ["long", "short"]


def test_an_unknown_discipline_and_a_bad_bound_are_refused() -> None:
    with pytest.raises(UnknownDisciplineError, match="unknown discipline 'lifo': known are edf, fcfs, mlfq"):
        load_discipline("lifo")
    with pytest.raises(ValueError, match="starvation_s must be positive"):
        load_discipline("edf", 0.0)


def test_a_request_that_waits_already_is_refused() -> None:
    discipline = load_discipline("fcfs")
    discipline.push(Waiting("a", 0.0, 1.0))
    with pytest.raises(ValueError, match="'a' waits already"):
        discipline.push(Waiting("a", 0.0, 1.0))
