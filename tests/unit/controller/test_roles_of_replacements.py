"""Each role's count is part of what is wanted: replacements, rolls and scaling keep it."""

from __future__ import annotations

import dataclasses
from collections import Counter

from chiron.store import InstanceRecord
from chiron.v1 import types_pb2
from services.global_controller.model_roles import wanted_roles, with_change, with_desired, with_more
from services.global_controller.view import ClusterView, Liveness
from tests.support.cluster_states import READY, STOPPED, after, cluster, decide, instance, model, node, rolled

MIXED, BATCH, INTERACTIVE = types_pb2.ROLE_MIXED, types_pb2.ROLE_BATCH, types_pb2.ROLE_INTERACTIVE


def of_role(record: InstanceRecord, role: types_pb2.Role.ValueType, **more: object) -> InstanceRecord:
    return dataclasses.replace(record, role=role, **more)  # type: ignore[arg-type]


def roles(view: ClusterView) -> Counter[int]:
    return Counter(one.role for one in view.instances if one.desired != STOPPED)


def comes_up(view: ClusterView) -> ClusterView:
    """What is wanted is ready, what is not is gone."""
    return dataclasses.replace(
        view,
        instances=tuple(
            dataclasses.replace(one, observed=dataclasses.replace(one.observed, state=READY))
            for one in view.instances
            if one.desired != STOPPED
        ),
    )


def test_counts_by_role_add_up_to_what_is_wanted() -> None:
    record = with_more(with_more(model(desired=1), BATCH, 2), MIXED, 1)
    assert wanted_roles(record) == Counter({MIXED: 2, BATCH: 2})
    assert wanted_roles(with_change(record, MIXED, INTERACTIVE)) == Counter(
        {MIXED: 1, BATCH: 2, INTERACTIVE: 1}
    )
    assert wanted_roles(with_more(record, BATCH, -1)) == Counter({MIXED: 2, BATCH: 1})
    assert wanted_roles(with_desired(record, 1)) == Counter({BATCH: 1})
    assert wanted_roles(with_desired(record, 6)) == Counter({MIXED: 4, BATCH: 2})
    assert with_desired(record, 0).other_roles == ()


def test_what_is_lost_with_a_node_comes_back_in_its_roles() -> None:
    wanted = with_more(model(desired=1), BATCH, 2)
    view = cluster(
        wanted,
        node("n0", 3),
        node("n1", 3, liveness=Liveness.DEAD),
        instance("there", "n0", 0),
        of_role(instance("lost-1", "n1", 0), BATCH),
        of_role(instance("lost-2", "n1", 1), BATCH, role_pinned=True),
    )
    plan = decide(view)
    placed = [one for one in plan.puts if one.desired != STOPPED]
    assert [one.role for one in placed] == [BATCH, BATCH]
    assert sum(one.role_pinned for one in placed) == 1


def test_what_went_before_its_replacement_had_a_place_comes_back_in_its_role() -> None:
    wanted = with_more(model(desired=1), BATCH, 1)
    view = cluster(wanted, node("n0", 1), node("n1", 1, draining=True), instance("a", "n0"))
    later = dataclasses.replace(view, nodes=(node("n0", 1), node("n1", 1)))
    assert [one.role for one in decide(later).puts] == [BATCH]


def test_a_roll_ends_with_as_many_of_each_role() -> None:
    old = with_more(with_more(model(desired=2, version=1), BATCH, 2), INTERACTIVE, 1)
    new = dataclasses.replace(
        model(desired=5, version=2), other_roles=old.other_roles, desired_instances=old.desired_instances
    )
    records = [
        of_role(instance(f"old-{index}", "n0", index), role)
        for index, role in enumerate([MIXED, MIXED, BATCH, BATCH, INTERACTIVE])
    ]
    view = cluster(rolled(old, new), node("n0", 7), *records)
    for _ in range(12):
        view = comes_up(after(view, decide(view)))
        assert len(view.instances) in (5, 6)
    assert {one.spec_version for one in view.instances} == {2}
    assert roles(view) == Counter({MIXED: 2, BATCH: 2, INTERACTIVE: 1})


def test_of_too_many_the_role_goes_of_which_there_are_too_many() -> None:
    view = cluster(
        with_more(model(desired=1), BATCH, 1),
        node("n0", 4),
        instance("m1", "n0", 0),
        of_role(instance("b1", "n0", 1), BATCH),
        of_role(instance("b2", "n0", 2), BATCH),
        load={"b1": 9, "b2": 8, "m1": 0},
    )
    assert [one.instance_id for one in decide(view).puts] == ["b2"]
