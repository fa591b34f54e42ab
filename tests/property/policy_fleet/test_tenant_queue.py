"""Tenants share what comes free, however many requests wait of each; within one the discipline decides."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.disciplines import Waiting, load_discipline
from chiron.policy.tenant_queue import TenantQueue, expected_cost

DISCIPLINES = ("edf", "fcfs", "mlfq")
STARVATION_S = 10.0
TENANTS = "abcd"


def waiting(number: int, at: float = 0.0, due: float = math.inf, attained: int = 0) -> Waiting:
    return Waiting(number, at, due, attained, number)


def made(weights: dict[str, float] | None = None, discipline: str = "edf") -> TenantQueue:
    return TenantQueue(
        partial(load_discipline, discipline, STARVATION_S), lambda name: (weights or {}).get(name, 1.0)
    )


def serve(shared: TenantQueue, now: float = 0.0) -> int:
    """Takes out whoever goes next."""
    head = shared.peek(now)
    assert head is not None
    shared.take(head.request_id)
    assert isinstance(head.request_id, int)
    return head.request_id


rows = st.lists(
    st.tuples(
        st.sampled_from(TENANTS),
        st.floats(0, 3),
        st.sampled_from([math.inf, 0.5, 2.0, 9.0]),
        st.sampled_from([0, 300, 5_000]),
        st.integers(1, 900),
    ),
    max_size=40,
)
"""Tenant, seconds since the one before, TTFT SLO, tokens attained, cost."""


@pytest.mark.parametrize("discipline", DISCIPLINES)
@given(rows=rows, pause=st.floats(0, 20))
def test_with_one_tenant_it_is_its_discipline(discipline: str, rows: list, pause: float) -> None:
    shared, alone, now = made(discipline=discipline), load_discipline(discipline, STARVATION_S), 0.0
    for number, (_, gap, slo, attained, cost) in enumerate(rows):
        now += gap
        one = waiting(number, now, now + slo, attained)
        shared.push(one, "a", cost)
        alone.push(one)
        assert (shared.peek(now), len(shared)) == (alone.peek(now), len(alone))
    now += pause
    while (head := alone.pop(now)) is not None:
        assert serve(shared, now) == head.request_id
    assert (shared.peek(now), len(shared)) == (None, 0)


@pytest.mark.parametrize("discipline", DISCIPLINES)
@given(rows=rows, pause=st.floats(0, 20))
def test_within_a_tenant_the_order_is_the_disciplines(discipline: str, rows: list, pause: float) -> None:
    shared, alone, now = made({"a": 3.0}, discipline), {}, 0.0
    for number, (tenant, gap, slo, attained, cost) in enumerate(rows):
        now += gap
        one = waiting(number, now, now + slo, attained)
        shared.push(one, tenant, cost)
        alone.setdefault(tenant, load_discipline(discipline, STARVATION_S)).push(one)
    now += pause
    while len(shared):
        number = serve(shared, now)
        assert alone[rows[number][0]].pop(now).request_id == number


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.sampled_from(TENANTS), st.integers(1, 900)), min_size=1, max_size=120
    ),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 3.0]) for name in TENANTS}),
)
def test_while_two_tenants_wait_their_service_per_weight_differs_by_one_request_of_each(
    steps: list, weights: dict[str, float]
) -> None:
    """Theorem 1 of the paper, over every stretch in which both wait all the time."""
    shared, cost_of, owner = made(weights), {}, {}
    held: dict[str, int] = defaultdict(int)
    served: dict[str, float] = defaultdict(float)
    since: dict[tuple[str, str], list[float]] = {}
    costliest = {name: max([cost for _, who, cost in steps if who == name], default=0) for name in TENANTS}
    for number, (comes, tenant, cost) in enumerate(steps):
        if comes:
            shared.push(waiting(number), tenant, cost)
            cost_of[number], owner[number] = cost, tenant
            held[tenant] += 1
        elif len(shared):
            gone = serve(shared)
            held[owner[gone]] -= 1
            served[owner[gone]] += cost_of[gone] / weights[owner[gone]]
        for pair in combinations(TENANTS, 2):
            ahead = served[pair[0]] - served[pair[1]]
            if not (held[pair[0]] and held[pair[1]]):
                since.pop(pair, None)
                continue
            stretch = since.setdefault(pair, [ahead, ahead])
            stretch[:] = min(stretch[0], ahead), max(stretch[1], ahead)
            most = sum(costliest[name] / weights[name] for name in pair)
            assert stretch[1] - stretch[0] <= most + 1e-6


@given(flood=st.integers(1, 2_000), costs=st.tuples(st.integers(1, 900), st.integers(1, 900)))
def test_thousands_of_one_tenants_requests_keep_another_one_from_its_turn_once_at_most(
    flood: int, costs: tuple[int, int]
) -> None:
    shared = made()
    for number in range(flood):
        shared.push(waiting(number), "flood", costs[0])
    for _ in range(flood // 2):
        serve(shared)
    shared.push(waiting(flood), "newcomer", costs[1])
    assert flood in [serve(shared) for _ in range(min(2, len(shared)))]


def test_weights_divide_what_comes_free() -> None:
    shared = made({"a": 3.0})
    for number in range(400):
        shared.push(waiting(number), "ab"[number % 2], 10.0)
    served = [serve(shared) % 2 for _ in range(100)]
    assert served.count(0) == pytest.approx(75, abs=1)


def test_who_was_away_neither_catches_up_nor_pays_for_it() -> None:
    shared = made()
    for number in range(100):
        shared.push(waiting(number), "a", 10.0)
    for _ in range(50):
        serve(shared)
    for number in range(100, 150):
        shared.push(waiting(number), "b", 10.0)
    served = [serve(shared) >= 100 for _ in range(40)]
    assert sum(served) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("tenants", ["a", "ab"])
def test_what_comes_back_unserved_costs_nothing(tenants: str) -> None:
    shared = made()
    for number in range(20):
        shared.push(waiting(number), tenants[number % len(tenants)], 10.0)
    head = shared.peek(0.0)
    assert head is not None
    for _ in range(5):
        charged = shared.take(head.request_id)
        assert charged == 10.0
        shared.push(head, "a", 10.0, refund=charged)
        assert shared.peek(0.0) is head, "it has its old place"
    served = [serve(shared) for _ in range(20)]
    assert sorted(served) == list(range(20))


def test_who_leaves_unserved_costs_its_tenant_nothing() -> None:
    shared = made()
    for number in range(40):
        shared.push(waiting(number), "ab"[number % 2], 10.0)
    for number in range(0, 20, 2):
        shared.remove(number)
    served = [serve(shared) % 2 for _ in range(20)]
    assert served.count(0) == served.count(1) == 10


@given(
    counts=st.fixed_dictionaries({name: st.integers(0, 12) for name in TENANTS}),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 2.0]) for name in TENANTS}),
    served=st.integers(0, 20),
    costs=st.fixed_dictionaries({name: st.integers(1, 50) for name in TENANTS}),
)
def test_ahead_is_who_goes_before_a_newcomer(
    counts: dict[str, int], weights: dict[str, float], served: int, costs: dict[str, int]
) -> None:
    """Exact where a tenant's requests cost the same; disciplines put a newcomer last within its tenant."""
    shared, number = made(weights, "fcfs"), 0
    for name, count in counts.items():
        for _ in range(count):
            shared.push(waiting(number, float(number)), name, costs[name])
            number += 1
    for _ in range(min(served, len(shared))):
        serve(shared)
    found = {name: shared.ahead(name) for name in TENANTS}
    for name in TENANTS:
        trial = shared.emptied()
        for key, tenant in shared._of.items():
            trial.push(waiting(key, float(key)), tenant, costs[tenant])
        trial.push(waiting(9_999, 9_999.0), name, costs[name])
        before = 0
        while serve(trial) != 9_999:
            before += 1
        assert found[name] == pytest.approx(before, abs=len(TENANTS)), name


@given(rows=rows, taken=st.integers(0, 30))
def test_an_emptied_queue_goes_on_in_the_same_order(rows: list, taken: int) -> None:
    shared, kept = made({"b": 2.0}), {}
    for number, (tenant, _, slo, attained, cost) in enumerate(rows):
        kept[number] = (waiting(number, 0.0, slo, attained), tenant, cost)
        shared.push(*kept[number])
    for _ in range(min(taken, len(shared))):
        del kept[serve(shared)]
    again = shared.emptied()
    for one in reversed(kept.values()):
        again.push(*one)
    expected = [serve(shared) for _ in range(len(shared))]
    assert [serve(again) for _ in range(len(again))] == expected


def test_nothing_is_remembered_once_nobody_waits_and_little_while_somebody_does() -> None:
    shared = made()
    shared.push(waiting(0), "stays", 1.0)
    for number in range(1, 2_000):
        shared.push(waiting(number), "comes-and-goes", 1.0)
        shared.remove(number)
    assert len(shared._tags) <= 2 * len(shared._tenants) + 64
    assert serve(shared) == 0
    assert (shared._tenants, shared._tags, shared._now) == ({}, [], 0.0)


def test_a_request_waits_once() -> None:
    shared = made()
    shared.push(waiting(1), "a")
    with pytest.raises(ValueError, match="waits already"):
        shared.push(waiting(1), "b")
    with pytest.raises(KeyError):
        shared.take(2)
    with pytest.raises(KeyError):
        shared.remove(2)


@pytest.mark.parametrize(
    ("asked", "cost"),
    [
        ((100, 1, 0, 256.0), 356.0),
        ((100, 3, 50, 256.0), 250.0),
        ((100, 1, 4096, 256.0), 356.0),
        ((0, 1, 0, 0.0), 1.0),
    ],
)
def test_what_a_request_is_expected_to_cost(asked: tuple, cost: float) -> None:
    assert expected_cost(*asked) == cost
