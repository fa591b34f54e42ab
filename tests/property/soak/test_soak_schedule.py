"""The soak test's schedule: the seed's own, within its limits, and with an end to whatever it begins."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.soak.schedule import (
    ACTS,
    LASTING,
    Act,
    Fault,
    ScheduleError,
    Shape,
    Target,
    busy_until,
    domain_of,
    limit,
    make_schedule,
)

SEEDS = st.integers(0, 10_000)
SHAPES = st.builds(
    Shape,
    models=st.integers(1, 3),
    replicas=st.integers(1, 3),
    agents=st.integers(1, 4),
    routers=st.integers(1, 3),
    controllers=st.integers(1, 5),
    etcd=st.sampled_from([1, 3, 5]),
)


def text(schedule: tuple[Fault, ...]) -> str:
    return "\n".join(fault.line() for fault in schedule)


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES)
def test_the_same_seed_gives_the_same_bytes(seed: int, shape: Shape) -> None:
    one, other = (make_schedule(seed, seconds=120, faults=20, shape=shape) for _ in range(2))
    assert text(one) == text(other)


def test_another_seed_gives_another_schedule() -> None:
    made = {text(make_schedule(seed, seconds=60, faults=10, shape=Shape())) for seed in range(20)}
    assert len(made) == 20


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES, reckless=st.booleans())
def test_never_more_of_a_domain_is_weak_at_once_than_its_limit(
    seed: int, shape: Shape, reckless: bool
) -> None:
    schedule = make_schedule(seed, seconds=150, faults=25, shape=shape, reckless=reckless)
    for now in schedule:
        weak = Counter(
            domain_of(fault.target, fault.index, shape)
            for fault in schedule
            if fault.at_ms <= now.at_ms < busy_until(fault)
        )
        for domain, count in weak.items():
            assert count <= limit(domain, shape, reckless=reckless), (now, domain)


@settings(deadline=None)
@given(shape=SHAPES)
def test_the_limits_leave_enough_to_serve(shape: Shape) -> None:
    assert limit(("routers", 0), shape) < shape.routers
    assert limit(("model", 0), shape) < max(shape.replicas, 1)
    if shape.etcd > 1:
        assert limit(("etcd", 0), shape) <= (shape.etcd - 1) // 2
    for domain in ("agents", "controllers"):
        most = getattr(shape, domain)
        assert limit((domain, 0), shape) < most or most == 1


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES)
def test_what_lasts_has_an_end_within_the_time_and_nothing_else_lasts(seed: int, shape: Shape) -> None:
    for fault in make_schedule(seed, seconds=100, faults=20, shape=shape):
        assert (fault.for_ms > 0) == (fault.act in LASTING)
        assert fault.at_ms + fault.for_ms <= 100_000
        assert (fault.delay_ms > 0) == (fault.act is Act.DELAY)
        assert fault.act in ACTS[fault.target]


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES)
def test_as_many_as_asked_in_order_and_on_somebody_who_exists(seed: int, shape: Shape) -> None:
    schedule = make_schedule(seed, seconds=100, faults=20, shape=shape)
    assert len(schedule) == 20
    assert [fault.at_ms for fault in schedule] == sorted(fault.at_ms for fault in schedule)
    most = {
        Target.WORKER: shape.models * shape.replicas,
        Target.ENGINE: shape.models * shape.replicas,
        Target.AGENT: shape.agents,
        Target.LEADER: 1,
        Target.FOLLOWER: shape.controllers - 1,
        Target.ROUTER: shape.routers,
        Target.ROUTER_LINK: shape.routers,
        Target.CONTROLLER_LINK: shape.controllers,
        Target.ETCD: shape.etcd,
        Target.ETCD_LINK: shape.etcd,
        Target.PEER_LINK: shape.etcd,
        Target.WORKER_LINK: shape.models * shape.replicas,
        Target.HISTORY: 1,
        Target.MODEL: shape.models,
    }
    assert all(0 <= fault.index < most[fault.target] for fault in schedule)


@settings(deadline=None)
@given(seed=SEEDS)
def test_three_hundred_faults_fit_into_a_quarter_of_an_hour_and_strike_everything(seed: int) -> None:
    schedule = make_schedule(seed, seconds=900, faults=300, shape=Shape())
    struck = {(fault.target, fault.act) for fault in schedule}
    assert struck == {(target, act) for target, acts in ACTS.items() for act in acts}
    places = {fault.index for fault in schedule if fault.target in (Target.WORKER, Target.ENGINE)}
    assert places == {0, 1, 2, 3}


@settings(deadline=None)
@given(seed=SEEDS, shape=SHAPES)
def test_a_roll_has_the_time_that_it_takes_before_the_end_and_before_the_models_next(
    seed: int, shape: Shape
) -> None:
    rolls = [
        fault
        for fault in make_schedule(seed, seconds=200, faults=40, shape=shape)
        if fault.target is Target.MODEL
    ]
    for model in range(shape.models):
        own = [fault for fault in rolls if fault.index == model]
        assert all(busy_until(one) <= other.at_ms for one, other in pairwise(own))
    assert all(busy_until(fault) <= 200_000 for fault in rolls)


def test_what_is_alone_and_needed_is_spared_unless_asked() -> None:
    alone = Shape(routers=1, replicas=1)
    careful = make_schedule(1, seconds=300, faults=60, shape=alone)
    reckless = make_schedule(1, seconds=300, faults=60, shape=alone, reckless=True)
    needed = {Target.ROUTER, Target.ROUTER_LINK, Target.WORKER, Target.ENGINE, Target.WORKER_LINK}
    assert not needed & {fault.target for fault in careful}
    assert needed <= {fault.target for fault in reckless}


def test_too_many_faults_are_refused_with_what_fits() -> None:
    with pytest.raises(ScheduleError, match=r"1000 faults do not fit into 60 s: \d+ do"):
        make_schedule(1, seconds=60, faults=1000, shape=Shape())


def test_no_faults_are_no_schedule() -> None:
    assert make_schedule(1, seconds=60, faults=0, shape=Shape()) == ()
