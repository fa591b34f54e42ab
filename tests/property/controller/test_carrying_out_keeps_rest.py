"""Whatever an autoscaler decides, the reconciler finds nothing to undo, and no limit is broken."""

from __future__ import annotations

import dataclasses
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.policy.decisions import Action, ChangeRole, Retire, Start
from chiron.policy.words import Role
from chiron.store import InstanceRecord, ModelRecord
from services.global_controller.bounds import Bounds
from services.global_controller.carrying_out import carry_out
from services.global_controller.fleet import held_gpus, is_failed, is_stopping
from services.global_controller.model_roles import with_more
from services.global_controller.reconcile import reconcile
from services.global_controller.restraint import Restraint, sift, temporary_surplus
from services.global_controller.view import ClusterView, Liveness
from tests.support.cluster_states import (
    FAILED,
    LOADING,
    READY,
    RUNNING,
    STOPPED,
    after,
    cluster,
    instance,
    model,
    node,
    numbered,
)

NAMES = ("chat", "code")
ROLES = tuple(Role)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[ClusterView, dict[str, Bounds]]:
    """Nodes, two models and instances at rest or not: roles, failures, drains, dead nodes, old versions."""
    nodes = [
        node(
            f"n{index}",
            draw(st.integers(1, 4)),
            liveness=draw(st.sampled_from([Liveness.LIVE, Liveness.LIVE, Liveness.LIVE, Liveness.DEAD])),
            draining=draw(st.sampled_from([False, False, False, True])),
        )
        for index in range(draw(st.integers(1, 4)))
    ]
    free = {one.record.node_id: list(range(len(one.record.gpus))) for one in nodes}
    records: list[InstanceRecord] = []
    for index in range(draw(st.integers(0, 8))):
        name = draw(st.sampled_from(sorted(free)))
        if not free[name]:
            continue
        record = instance(
            f"old-{index}",
            name,
            free[name].pop(),
            of=draw(st.sampled_from(NAMES)),
            state=draw(st.sampled_from([READY, READY, READY, LOADING, FAILED])),
            version=draw(st.sampled_from([1, 1, 1, 2])),
            desired=draw(st.sampled_from([RUNNING, RUNNING, RUNNING, STOPPED])),
        )
        records.append(dataclasses.replace(record, role=draw(st.sampled_from(ROLES)).value))
    models, bounds = [], {}
    for name in NAMES:
        own = [one for one in records if one.model == name and one.desired == RUNNING]
        fewest = draw(st.integers(0, 2))
        most = draw(st.integers(max(1, fewest), 8))
        record = model(name, 0)
        for one in own[:most]:
            record = with_more(record, one.role, 1)
        if record.desired_instances < fewest:
            record = with_more(record, Role.MIXED.value, fewest - record.desired_instances)
        models.append(record)
        bounds[name] = Bounds(fewest, most)
    return cluster(*models, *nodes, *records), bounds


@st.composite
def situations(draw: st.DrawFn) -> tuple[ClusterView, dict[str, Bounds], list[Action]]:
    view, bounds = draw(clusters())
    actions: list[Action] = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from(NAMES))
        own = [one.instance_id for one in view.instances if one.model == name]
        kind = draw(st.sampled_from(["start", "retire", "role"]))
        if kind == "start" or not own:
            actions.append(Start(name, draw(st.sampled_from(ROLES)), draw(st.integers(0, 6)), "demand"))
        elif kind == "retire":
            actions.append(Retire(name, draw(st.sampled_from(own)), "idle"))
        else:
            actions.append(
                ChangeRole(name, draw(st.sampled_from(own)), draw(st.sampled_from(ROLES)), "batch work")
            )
    view = dataclasses.replace(view, gpu_budget=draw(st.sampled_from([0, 0, 3, 6])))
    return view, bounds, actions


def awake(view: ClusterView) -> list[InstanceRecord]:
    dead = {one.record.node_id for one in view.nodes if one.liveness is Liveness.DEAD}
    return [one for one in view.instances if one.node_id not in dead]


def record_of(view: ClusterView, name: str) -> ModelRecord:
    return next(one for one in view.models if one.name == name)


@settings(max_examples=400, deadline=None)
@given(situations())
def test_after_any_decision_the_reconciler_rests_and_every_limit_holds(
    situation: tuple[ClusterView, dict[str, Bounds], list[Action]],
) -> None:
    view, bounds, actions = situation
    ids = numbered()
    carried = carry_out(view, actions, ids, bounds=bounds)
    done = after(view, carried.plan)

    # A roll that has no free GPU makes room by itself; whatever else there was to do has been done.
    rolls = any(one.spec_version != 1 and not is_stopping(one) for one in done.instances)
    started = {one.instance_id for one in carried.plan.puts} - {one.instance_id for one in view.instances}
    later = done
    for _ in range(3):
        plan = reconcile(later, ids)
        if carried.plan.puts or carried.plan.models:
            assert rolls or (plan.puts, plan.models) == ((), ())
            assert not started & {one.instance_id for one in plan.puts}
            assert not plan.models
        later = after(later, plan)
    wanted = {one.instance_id for one in later.instances if not is_stopping(one)}
    for action in actions:
        void = any(action is one for one, _ in carried.void)
        if isinstance(action, Retire) and not void:
            assert action.instance_id not in wanted
    taken = Counter((one.node_id, gpu) for one in done.instances for gpu in held_gpus(one))
    assert all(count == 1 for count in taken.values())
    for name in NAMES:
        before, now = record_of(view, name), record_of(done, name)
        assert now.desired_instances >= min(before.desired_instances, bounds[name].fewest)
        assert now.desired_instances <= max(before.desired_instances, bounds[name].most)
    if view.gpu_budget:
        held = [sum(len(held_gpus(one)) for one in awake(state)) for state in (view, done)]
        assert held[1] <= max(held[0], view.gpu_budget)


@settings(max_examples=200, deadline=None)
@given(situations())
def test_nothing_that_serves_goes_unless_it_was_retired(
    situation: tuple[ClusterView, dict[str, Bounds], list[Action]],
) -> None:
    view, bounds, actions = situation
    # What the reconciler would do by itself is done first: here only the decision counts.
    ids = numbered()
    for _ in range(6):
        view = after(view, reconcile(view, ids))
    # While others are replaced more run than are wanted: none of these counts as surplus.
    held = {name: Restraint(down="others are replaced") for name in temporary_surplus(view)}
    allowed, _ = sift(actions, {name: Restraint() for name in NAMES} | held)
    carried = carry_out(view, allowed, ids, bounds=bounds)
    retired = {action.instance_id for action in actions if isinstance(action, Retire)}
    # An operator has said that what is on a draining node goes, with or without a place elsewhere.
    leaving = {one.record.node_id for one in view.nodes if one.record.draining}
    serving = {
        one.instance_id
        for one in awake(view)
        if not is_stopping(one) and not is_failed(one) and one.node_id not in leaving
    }
    # Of an old version one goes where the new one has taken its place: that is the roll's own step.
    old = {one.instance_id for one in view.instances if one.spec_version != 1}
    stopped = {one.instance_id for one in carried.plan.puts if is_stopping(one)}
    assert stopped & serving <= retired | old
