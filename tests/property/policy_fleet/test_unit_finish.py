"""The work until a unit is served is what the order really takes to hand out its last item."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.drain_rate import DrainRate
from chiron.policy.unit_finish import work_until_served
from chiron.policy.unit_order import UnitOrder
from chiron.policy.work_units import WorkUnit

tenants = st.sampled_from(["a", "b", "c"])
queues = st.lists(
    st.builds(
        lambda tenant, deadline, accepted, priority, items: WorkUnit(
            None, tenant, deadline, accepted, priority, items, 0, items
        ),
        tenants,
        st.floats(-300, 900),
        st.floats(-100, 0),
        st.integers(-2, 2),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=20,
).map(lambda found: [replace(unit, key=number) for number, unit in enumerate(found)])


@given(queues, st.dictionaries(tenants, st.integers(1, 4)))
def test_it_is_when_the_order_hands_out_the_last_item(queue, weights) -> None:
    def weight(tenant: str) -> float:
        return float(weights.get(tenant, 1))

    order = UnitOrder(weight, starvation_s=1e9)
    order.update(queue, 0.0)
    last: dict[object, int] = {}
    handed = 0
    while (taken := order.take(0.0)) is not None:
        handed += 1
        last[taken.key] = handed
    served = work_until_served(queue, lambda unit: float(unit.items), weight, 0.0)
    assert served.keys() == last.keys()
    for key, work in served.items():
        # Items are whole: each tenant may be one of them ahead, by its weight.
        assert work == pytest.approx(last[key], abs=2.0 * sum(weight(each) for each in "abc"))
    assert max(served.values()) == pytest.approx(handed)


def test_the_group_and_the_weights_count() -> None:
    def unit(key: str, tenant: str, deadline: float, items: int) -> WorkUnit:
        return WorkUnit(key, tenant, deadline, 0.0, 0, items, 0, items)

    queue = [
        unit("first", "a", 15.0, 30),
        unit("beside", "b", 16.0, 90),
        unit("later", "a", 900.0, 10),
        unit("late", "b", -5.0, 5),
    ]
    served = work_until_served(queue, lambda unit: float(unit.items), {"a": 1.0, "b": 2.0}.__getitem__, 0.0)
    assert served == {"first": 90.0, "beside": 120.0, "later": 130.0, "late": 135.0}


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0.1, 30)), min_size=1, max_size=30))
def test_a_rate_is_a_mean_of_what_was_seen(seen) -> None:
    rate = DrainRate()
    for tokens_per_s, interval_s in seen:
        rate.observe(tokens_per_s, interval_s)
    rates = [each for each, _ in seen]
    assert min(rates) - 1e-6 <= rate.tokens_per_s <= max(rates) + 1e-6
    assert 0 <= rate.drift <= max(rates) + 1e-6
    assert rate.noise >= 0


def test_a_rate_forgets() -> None:
    rate = DrainRate(half_life_s=60.0)
    assert not rate.known
    for _ in range(60):
        rate.observe(1000.0, 1.0)
    assert (rate.tokens_per_s, rate.drift) == (pytest.approx(1000.0), pytest.approx(0.0, abs=1e-3))
    for _ in range(600):
        rate.observe(100.0, 1.0)
    assert rate.tokens_per_s == pytest.approx(100.0, rel=0.02)
