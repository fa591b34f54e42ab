"""What holds however nodes, workers and operators behave."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.store import InstanceRecord
from services.global_controller.fleet import held_gpus
from services.global_controller.reconcile import reconcile
from services.global_controller.view import ClusterView, Liveness
from tests.support.cluster_states import (
    FAILED,
    LOADING,
    PENDING,
    READY,
    RUNNING,
    STOPPED,
    instance,
    model,
    node,
    numbered,
)

_STATES = (PENDING, LOADING, READY, FAILED)
_NODES = ("n0", "n1", "n2")


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    """Clusters in any condition whose GPUs are held once each."""
    nodes = tuple(
        node(
            name,
            draw(st.integers(0, 4)),
            liveness=draw(st.sampled_from(list(Liveness))),
            draining=draw(st.booleans()),
        )
        for name in _NODES
    )
    models = tuple(
        model(
            name,
            draw(st.integers(0, 4)),
            gpus=draw(st.integers(1, 2)),
            version=draw(st.integers(1, 2)),
            deleted=draw(st.booleans()),
        )
        for name in ("chat", "code")
    )
    models = tuple(dataclasses.replace(one, desired_instances=0) if one.deleted else one for one in models)
    slots = [(one.record.node_id, gpu.index) for one in nodes for gpu in one.record.gpus]
    held = draw(st.lists(st.sampled_from(slots), unique=True, max_size=6)) if slots else []
    records = [
        instance(
            f"i{number}",
            node_id,
            gpu,
            of=draw(st.sampled_from(["chat", "code", "forgotten"])),
            state=draw(st.sampled_from(_STATES)),
            version=draw(st.integers(1, 2)),
            desired=draw(st.sampled_from([RUNNING, RUNNING, STOPPED])),
        )
        for number, (node_id, gpu) in enumerate(held)
    ]
    unknown_from = draw(st.integers(0, len(records)))
    return ClusterView(
        models=models,
        instances=tuple(one for one in records[:unknown_from] if one.model != "forgotten"),
        nodes=nodes,
        unknown=tuple(dataclasses.replace(one, desired=RUNNING) for one in records[unknown_from:]),
        settling=draw(st.booleans()),
    )


def after(view: ClusterView, puts: Iterable[InstanceRecord]) -> ClusterView:
    written = {one.instance_id: one for one in (*view.instances, *puts)}
    unknown = tuple(one for one in view.unknown if one.instance_id not in written)
    return dataclasses.replace(view, instances=tuple(written.values()), unknown=unknown)


def agents_act(view: ClusterView) -> ClusterView:
    """On nodes that are live, what should run becomes ready and what should stop is gone."""
    live = {one.record.node_id for one in view.nodes if one.liveness is Liveness.LIVE}
    records = []
    for one in view.instances:
        if one.node_id not in live or (one.observed.state == FAILED and one.desired == RUNNING):
            records.append(one)
        elif one.desired == RUNNING:
            observed = dataclasses.replace(one.observed, state=READY)
            records.append(dataclasses.replace(one, observed=observed))
    return dataclasses.replace(view, instances=tuple(records))


@given(views())
def test_no_gpu_is_held_twice_and_nothing_new_goes_where_it_must_not(view: ClusterView) -> None:
    plan = reconcile(view, numbered())
    result = after(view, plan.puts)
    claims = [(one.node_id, gpu) for one in (*result.instances, *result.unknown) for gpu in held_gpus(one)]
    assert len(claims) == len(set(claims))
    usable = {
        one.record.node_id for one in view.nodes if one.liveness is Liveness.LIVE and not one.record.draining
    }
    before = {one.instance_id for one in (*view.instances, *view.unknown)}
    assert {one.node_id for one in plan.puts if one.instance_id not in before} <= usable


@given(views())
def test_every_write_is_explained(view: ClusterView) -> None:
    plan = reconcile(view, numbered())
    assert {act.instance_id for act in plan.acts} == {one.instance_id for one in plan.puts}
    assert all(act.reason for act in plan.acts)


@given(views())
def test_while_settling_nothing_of_a_live_model_stops(view: ClusterView) -> None:
    deleted = {one.name for one in view.models if one.deleted}
    plan = reconcile(dataclasses.replace(view, settling=True), numbered())
    assert {one.model for one in plan.puts if one.desired == STOPPED} <= deleted


@given(views())
def test_the_order_in_which_things_are_listed_does_not_matter(view: ClusterView) -> None:
    turned = dataclasses.replace(
        view,
        models=view.models[::-1],
        instances=view.instances[::-1],
        nodes=view.nodes[::-1],
        unknown=view.unknown[::-1],
    )
    first, second = reconcile(view, numbered()), reconcile(turned, numbered())
    assert {one.instance_id: one for one in first.puts} == {one.instance_id: one for one in second.puts}


@settings(max_examples=200)
@given(views())
def test_it_comes_to_rest_with_what_was_wanted_or_a_reason(view: ClusterView) -> None:
    view = dataclasses.replace(
        view,
        settling=False,
        nodes=tuple(
            dataclasses.replace(one, liveness=Liveness.DEAD)
            if one.liveness in (Liveness.UNHEARD, Liveness.SILENT, Liveness.JOINING)
            else one
            for one in view.nodes
        ),
    )
    ids = numbered()
    for turn in itertools.count():
        assert turn < 60, "never comes to rest"
        plan = reconcile(view, ids)
        moved = agents_act(after(view, plan.puts))
        if not plan.puts and moved == view:
            break
        view = moved
    for one in view.models:
        ready = [
            each
            for each in view.instances
            if each.model == one.name and each.desired == RUNNING and each.observed.state == READY
        ]
        assert len(ready) <= max(one.desired_instances, 0)
        assert len(ready) == one.desired_instances or plan.reasons.get(one.name)
