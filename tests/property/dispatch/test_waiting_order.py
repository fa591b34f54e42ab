"""Who of those that wait in a router goes next: priority, then those that go on, then the discipline."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.disciplines import Waiting, load_discipline
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.queue import WaitingQueue
from services.router.request import PendingRequest

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH
STARVATION_S = 10.0
DISCIPLINES = ("edf", "fcfs", "mlfq")

arrivals = st.lists(
    st.tuples(
        st.floats(0, 3),
        st.sampled_from([0, 100, 2_000, 8_000, 30_000]),
        st.integers(-1, 1),
        st.sampled_from([None, 10, 5_000]),
    ),
    max_size=25,
)
"""Seconds since the one before, TTFT SLO in ms (0: none), priority, tokens delivered where it goes on."""


def request(
    number: int, at: float, ttft_ms: float = 0.0, priority: int = 0, delivered: int | None = None
) -> PendingRequest:
    slo = types_pb2.Slo(ttft_ms=ttft_ms) if ttft_ms else types_pb2.Slo()
    made = PendingRequest(str(number), "m", INTERACTIVE, at, priority, slo=slo, sequence=number)
    if delivered is not None:
        made.resume(1, at, delivered)
    return made


def filled(
    discipline: str, steps: list[tuple[float, int, int, int | None]]
) -> tuple[WaitingQueue, list[PendingRequest], float]:
    queue, made, now = WaitingQueue(1000, discipline, STARVATION_S), [], 0.0
    for number, (gap, ttft_ms, priority, delivered) in enumerate(steps):
        now += gap
        made.append(request(number, now, ttft_ms, priority, delivered))
        queue.push(made[-1])
    return queue, made, now


@pytest.mark.parametrize("discipline", DISCIPLINES)
@given(steps=arrivals, pause=st.floats(0, 20))
def test_priority_is_first_then_who_goes_on_then_the_policys_own_order(
    discipline: str, steps: list[tuple[float, int, int, int | None]], pause: float
) -> None:
    """Within one priority and kind it is the order of the discipline that the simulator's router runs."""
    queue, made, now = filled(discipline, steps)
    now += pause
    expected = []
    for key in sorted({(one.priority, one.resumed_at is None) for one in made}):
        order = load_discipline(discipline, STARVATION_S)
        for one in made:
            if (one.priority, one.resumed_at is None) == key:
                deadline = one.arrived + one.slo.ttft_ms / 1e3 if one.slo.ttft_ms else math.inf
                order.push(Waiting(one, one.arrived, deadline, one.attained_tokens, one.sequence))
        while (head := order.pop(now)) is not None:
            expected.append(head.request_id)
    assert queue.in_order(INTERACTIVE, now) == expected
    found = []
    while (one := queue.peek(INTERACTIVE, now)) is not None:
        assert queue.pop(INTERACTIVE, now) is one
        found.append(one)
    assert found == expected
    assert len(queue) == 0


@pytest.mark.parametrize("discipline", DISCIPLINES)
@given(steps=arrivals, pause=st.floats(0, 20))
def test_who_has_waited_long_enough_is_passed_only_by_older_ones_of_its_priority(
    discipline: str, steps: list[tuple[float, int, int, int | None]], pause: float
) -> None:
    queue, made, now = filled(discipline, [(gap, ttft, 0, None) for gap, ttft, _, _ in steps])
    now += pause
    starving = [one for one in made if now - one.arrived >= STARVATION_S]
    taken = [queue.pop(INTERACTIVE, now) for _ in starving]
    assert taken == starving, "oldest first, before everybody else"


@given(steps=arrivals, again=st.lists(st.integers(0, 24), max_size=10))
def test_who_comes_back_has_its_old_place(
    steps: list[tuple[float, int, int, int | None]], again: list[int]
) -> None:
    # All at one instant, so that nothing but the place tells them apart.
    queue, made, now = filled("edf", [(0.0, ttft, priority, None) for _, ttft, priority, _ in steps])
    before = list(made)
    for index in again:
        if made:
            one = made[index % len(made)]
            assert queue.remove(one)
            queue.push(one, readmit=True)
    found = [queue.pop(INTERACTIVE, now) for _ in made]
    due = {one: one.due for one in before}
    assert found == sorted(before, key=lambda one: (one.priority, due[one], one.sequence))


def batch(number: int, deadline: float | None, at: float = 0.0) -> PendingRequest:
    return PendingRequest(str(number), "m", BATCH, at, deadline=deadline, sequence=number)


def test_batch_requests_go_group_by_group_and_in_order_of_arrival_within_one() -> None:
    queue = WaitingQueue(100, "edf")
    ids = {1: 5000.0, 2: 105.0, 3: None, 4: 100.0, 5: 4999.0}
    for number, deadline in ids.items():
        queue.push(batch(number, deadline))
    assert [queue.pop(BATCH, 0.0).request_id for _ in ids] == ["2", "4", "1", "5", "3"]


def test_mlfq_puts_those_back_that_have_had_much() -> None:
    queue = WaitingQueue(100, "mlfq")
    long, short = request(1, 0.0, delivered=5_000), request(2, 1.0, delivered=3)
    queue.push(long)
    queue.push(short)
    assert [queue.pop(INTERACTIVE, 2.0), queue.pop(INTERACTIVE, 2.0)] == [short, long]


def test_ahead_counts_who_goes_before_a_newcomer() -> None:
    queue = WaitingQueue(100)
    for number, priority in enumerate((-1, 0, 0, 5)):
        queue.push(request(number, 0.0, priority=priority))
    queue.push(request(9, 0.0, priority=0, delivered=4))
    for number, deadline in enumerate((10.0, 1e6, None)):
        queue.push(batch(20 + number, deadline))
    assert queue.ahead(request(30, 1.0)) == {INTERACTIVE: 4}
    assert queue.ahead(request(30, 1.0, priority=9)) == {INTERACTIVE: 5}
    assert queue.ahead(request(30, 1.0, delivered=1)) == {INTERACTIVE: 2}
    assert queue.ahead(batch(31, 500.0)) == {INTERACTIVE: 5, BATCH: 1}
    assert queue.ahead(batch(31, None)) == {INTERACTIVE: 5, BATCH: 3}
