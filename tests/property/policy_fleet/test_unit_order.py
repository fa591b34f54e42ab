"""Units of a durable queue: groups by deadline, late ones last, fair shares within a group, nobody
starves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.deadline_cells import DeadlineCells
from chiron.policy.unit_order import UnitOrder
from chiron.policy.work_units import WorkUnit

NEVER = 1e9
tenants = st.sampled_from(["a", "b", "c"])
units = st.builds(
    lambda tenant, deadline, accepted, priority, items, prompt, output: WorkUnit(
        None, tenant, deadline, accepted, priority, items, items * prompt, items * output
    ),
    tenants,
    st.floats(-300, 900),
    st.floats(-100, 0),
    st.integers(-2, 2),
    st.integers(1, 6),
    st.integers(0, 900),
    st.integers(0, 400),
)
queues = st.lists(units, min_size=1, max_size=25).map(
    lambda found: [replace(unit, key=number) for number, unit in enumerate(found)]
)


def group_of(unit: WorkUnit, waiting: list[WorkUnit]) -> list[int]:
    cells: DeadlineCells[list[WorkUnit]] = DeadlineCells(list)
    for each in waiting:
        cells.occupy(cells.index(each.deadline_s))
    index = cells.index(unit.deadline_s)
    return next(run for run in cells.runs() if index in run)


@given(queues, st.floats(0, 60))
def test_each_item_goes_once_in_the_order_of_groups_and_the_late_ones_last(queue, step_s) -> None:
    order = UnitOrder(starvation_s=NEVER)
    order.update(queue, 0.0)
    left = {unit.key: unit for unit in queue}
    counts = Counter({unit.key: unit.items for unit in queue})
    now = 0.0
    while (taken := order.take(now)) is not None:
        unit = left[taken.key]
        in_time = [each for each in left.values() if each.deadline_s > now]
        rivals = in_time or list(left.values())
        assert unit in rivals, "something that can be in time waits"
        first = min(rivals, key=lambda each: each.deadline_s)
        assert group_of(unit, rivals) == group_of(first, rivals)
        same = [
            each
            for each in rivals
            if each.tenant == unit.tenant and group_of(each, rivals) == group_of(unit, rivals)
        ]
        assert (unit.priority, unit.accepted_s) == min((each.priority, each.accepted_s) for each in same)
        counts[unit.key] -= 1
        if not counts[unit.key]:
            del left[unit.key]
        now += step_s
    assert not left


def test_a_tenant_that_another_one_ties_with_goes_by_priority_over_all_cells_of_a_group() -> None:
    order = UnitOrder(starvation_s=NEVER)
    order.update(
        [
            WorkUnit("later", "a", 30.0, 0.0, 0, 1, 1, 1),
            WorkUnit("rival", "b", 1.0, 0.0, 0, 1, 1, 1),
            WorkUnit("urgent", "a", 1.0, 0.0, -1, 1, 1, 1),
        ],
        0.0,
    )
    taken = [order.take(0.0) for _ in range(3)]
    assert [one.key for one in taken if one is not None and one.tenant == "a"] == ["urgent", "later"]


@given(
    st.dictionaries(tenants, st.integers(1, 5), min_size=2),
    st.lists(st.tuples(tenants, st.integers(0, 500), st.integers(1, 500)), min_size=1, max_size=12),
    st.integers(20, 200),
)
def test_tenants_that_always_have_work_get_tokens_by_weight(weights, work, rounds) -> None:
    order = UnitOrder(lambda tenant: weights[tenant], NEVER)
    work = [(tenant, prompt, output) for tenant, prompt, output in work if tenant in weights]
    work += [(tenant, 10, 10) for tenant in weights]
    order.update(
        [
            WorkUnit(number, tenant, 15.0, 0.0, 0, 10_000, 10_000 * prompt, 10_000 * output)
            for number, (tenant, prompt, output) in enumerate(work)
        ],
        0.0,
    )
    got = Counter(dict.fromkeys(weights, 0.0))
    for _ in range(rounds):
        taken = order.take(0.0)
        assert taken is not None
        got[taken.tenant] += taken.charged
    largest = {
        tenant: max(prompt + output for name, prompt, output in work if name == tenant) / weights[tenant]
        for tenant in weights
    }
    for one in weights:
        for other in weights:
            apart = got[one] / weights[one] - got[other] / weights[other]
            assert apart <= largest[one] + 1e-6, "who is ahead is so by one item at most"


@given(st.lists(st.tuples(tenants, st.booleans()), min_size=1, max_size=60), st.integers(1, 999))
def test_what_was_charged_and_did_not_run_or_cost_less_comes_back(ends, output) -> None:
    order = UnitOrder(starvation_s=NEVER)
    order.update([WorkUnit(t, t, 15.0, 0.0, 0, 10_000, 0, 10_000_000) for t in "abc"], 0.0)
    spent = Counter(dict.fromkeys("abc", 0.0))
    for _, ran in ends:
        taken = order.take(0.0)
        assert taken is not None
        if ran:
            order.shares.settle(taken.tenant, taken.charged, 0, output)
            spent[taken.tenant] += output
        else:
            order.shares.give_back(taken.tenant, taken.charged)
    # Nobody is ahead by more than the one item that was charged in full before its cost was known.
    assert max(spent.values()) - min(spent.values()) <= 1000 + output


@given(st.integers(1, 12), st.integers(2, 9))
def test_nobody_starves_behind_a_stream_that_goes_first(neglected, every) -> None:
    order = UnitOrder(starvation_s=50.0, starving_every=every)
    late = [WorkUnit(("late", n), "b", -5.0 - 40 * n, -5.0, 5, 1000, 0, 1000) for n in range(neglected)]
    since: Counter[object] = Counter()
    rounds = 3 * every * (neglected + 1)
    in_turn = 0
    for now in range(60, 60 + rounds):
        stream = WorkUnit(("new", now), "a", now + 10.0, float(now), -5, 3, 0, 3)
        order.update([*late, stream], float(now))
        taken = order.take(float(now))
        assert taken is not None
        in_turn += taken.key == stream.key
        for unit in late:
            since[unit.key] = 0 if unit.key == taken.key else since[unit.key] + 1
        assert max(since.values()) <= every * neglected
    assert in_turn >= rounds - rounds // every, "they take no more than their share"


def test_who_had_its_turn_starves_no_more() -> None:
    order = UnitOrder(starvation_s=50.0, starving_every=2)
    late = WorkUnit("late", "a", -5.0, 0.0, 0, 1000, 0, 1000)
    order.update([late], 60.0)
    assert [order.take(60.0).key for _ in range(4)] == ["late"] * 4
    order.update([late, WorkUnit("new", "a", 99.0, 60.0, 0, 100, 0, 100)], 61.0)
    assert [order.take(61.0).key for _ in range(20)] == ["new"] * 20
    order.withhold("new", 200.0)
    assert order.take(62.0).key == "late"


@given(queues, st.data())
def test_what_is_withheld_waits_and_comes_back(queue, data) -> None:
    order = UnitOrder(starvation_s=NEVER)
    order.update(queue, 0.0)
    held: dict[object, float] = {}
    total = sum(unit.items for unit in queue)
    taken = 0
    for now in range(0, 60):
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from([unit.key for unit in queue]))
            until = now + data.draw(st.integers(1, 9))
            order.withhold(key, until)
            held[key] = max(until, held.get(key, 0))
        one = order.take(float(now))
        if one is not None:
            taken += 1
            assert held.get(one.key, 0) <= now
    while order.take(100.0) is not None:
        taken += 1
    assert taken == total


@given(queues, queues)
def test_an_update_replaces_what_waits(before, after) -> None:
    order = UnitOrder(starvation_s=NEVER)
    order.update(before, 0.0)
    for _ in range(3):
        order.take(1.0)
    order.update(after, 2.0)
    got: Counter[object] = Counter()
    while (taken := order.take(2.0)) is not None:
        got[taken.key] += 1
    assert got == Counter({unit.key: unit.items for unit in after})
    groups = order.groups()
    assert sum(group.requests for group in groups) == sum(unit.items for unit in after)
    assert [group.earliest_deadline_s for group in groups] == sorted(
        group.earliest_deadline_s for group in groups
    )
