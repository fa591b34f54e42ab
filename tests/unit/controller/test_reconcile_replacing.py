"""What the controller replaces: on dead and drained nodes, of an earlier spec, and what has failed."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from services.global_controller.reconcile import reconcile
from services.global_controller.view import ClusterView, Liveness
from tests.support.cluster_states import (
    FAILED,
    LOADING,
    PENDING,
    READY,
    RUNNING,
    STOPPED,
    after,
    cluster,
    decide,
    instance,
    model,
    node,
    nothing,
    numbered,
    started,
    stopped,
)


class TestDeadNodes:
    def test_an_instance_is_replaced_elsewhere_once_its_node_is_dead(self) -> None:
        view = cluster(model(), node("a", liveness=Liveness.DEAD), node("b"), instance("i", "a"))
        plan = decide(view)
        assert started(plan) == {"new-1": ("b", (0,))}
        assert stopped(plan) == set()
        assert plan.acts[0].action == "replace"
        assert plan.acts[0].numbers["silent_s"] == 7.5
        assert "7.5 s" in plan.acts[0].reason

    @pytest.mark.parametrize("liveness", [Liveness.SILENT, Liveness.JOINING])
    def test_silence_within_the_timeout_changes_nothing(self, liveness: Liveness) -> None:
        assert nothing(decide(cluster(model(), node("a", liveness=liveness), node("b"), instance("i", "a"))))

    def test_it_is_given_up_when_the_replacement_serves(self) -> None:
        parts = (model(), node("a", liveness=Liveness.DEAD), node("b"), instance("i", "a"))
        assert nothing(decide(cluster(*parts, instance("new", "b", state=LOADING))))
        plan = decide(cluster(*parts, instance("new", "b", state=READY)))
        assert stopped(plan) == {"i"}

    def test_a_node_that_returns_in_time_keeps_what_serves_and_the_replacement_stops(self) -> None:
        view = cluster(model(), node("a"), node("b"), instance("i", "a"), instance("new", "b", state=LOADING))
        assert stopped(decide(view)) == {"new"}

    def test_without_gpus_elsewhere_it_waits_and_says_so(self) -> None:
        plan = decide(cluster(model(), node("a", liveness=Liveness.DEAD), instance("i", "a")))
        assert nothing(plan)
        assert "1 node not connected" in plan.reasons["chat"]


class TestNewSpec:
    new = model(desired=2, version=2)

    def test_one_new_instance_starts_first_where_gpus_are_free(self) -> None:
        plan = decide(cluster(self.new, node("a", 3), instance("i", "a", 0), instance("j", "a", 1)))
        assert started(plan) == {"new-1": ("a", (2,))}
        assert stopped(plan) == set()
        assert plan.puts[0].spec_version == 2

    def test_the_next_step_waits_until_the_new_one_serves(self) -> None:
        old = (instance("i", "a", 0), instance("j", "a", 1))
        loading = instance("k", "a", 2, version=2, state=LOADING)
        assert nothing(decide(cluster(self.new, node("a", 4), *old, loading)))
        ready = instance("k", "a", 2, version=2)
        plan = decide(cluster(self.new, node("a", 4), *old, ready, load={"i": 3, "j": 1}))
        assert stopped(plan) == {"j"}
        assert started(plan) == {}

    def test_the_next_one_starts_only_when_the_one_before_is_gone(self) -> None:
        parts = (self.new, node("a", 4), instance("i", "a", 0), instance("k", "a", 2, version=2))
        assert nothing(decide(cluster(*parts, instance("j", "a", 1, desired=STOPPED))))
        assert started(decide(cluster(*parts))) == {"new-1": ("a", (1,))}

    def test_one_old_instance_stops_first_where_no_gpu_is_free(self) -> None:
        view = cluster(
            self.new,
            node("a"),
            instance("i", "a", 0),
            instance("j", "a", 1),
            load={"i": 0, "j": 4},
        )
        plan = decide(view)
        assert stopped(plan) == {"i"}
        assert "makes room" in plan.acts[0].reason

    def test_nothing_stops_for_a_version_that_would_not_fit_anyway(self) -> None:
        new = model(desired=1, gpus=4, version=2)
        plan = decide(cluster(new, node("a"), instance("i", "a", 0)))
        assert nothing(plan)
        assert plan.reasons["chat"].startswith("spec version 2 cannot be placed, the earlier one goes on")

    def test_a_new_version_that_fails_stops_the_roll_out(self) -> None:
        broken = instance("k", "a", 2, version=2, state=FAILED, reason="no such weights")
        plan = decide(cluster(self.new, node("a", 4), instance("i", "a", 0), instance("j", "a", 1), broken))
        assert nothing(plan)
        assert "k on a failed: no such weights" in plan.reasons["chat"]
        assert "the earlier one goes on" in plan.reasons["chat"]

    def test_old_instances_that_serve_nobody_go_at_once(self) -> None:
        view = cluster(
            self.new,
            node("a", 4),
            instance("i", "a", 0, state=FAILED),
            instance("j", "a", 1, state=LOADING),
        )
        plan = decide(view)
        assert stopped(plan) == {"i", "j"}
        # What has failed left its GPU already.
        assert sorted(started(plan).values()) == [("a", (0,)), ("a", (2,))]

    def test_a_change_that_needs_no_new_workers_rolls_nothing(self) -> None:
        assert nothing(decide(cluster(model(version=5, rollout=1), node("a"), instance("i", "a"))))

    @pytest.mark.parametrize("gpus", [2, 3])
    def test_a_whole_roll_out_never_has_fewer_ready_than_it_must(self, gpus: int) -> None:
        """With a spare GPU both keep serving; without one, one of the two does."""
        view = cluster(self.new, node("a", gpus), instance("i", "a", 0), instance("j", "a", 1))
        ids, fewest = numbered(), 2
        for _ in range(20):
            plan = reconcile(view, ids)
            view = after(view, plan)
            fewest = min(fewest, sum(serves(one) for one in view.instances))
            if not plan.puts:
                view = step(view)
        assert fewest == gpus - 1
        assert {one.spec_version for one in view.instances} == {2}
        assert len(view.instances) == 2


class TestDraining:
    def test_instances_are_replaced_elsewhere_first(self) -> None:
        plan = decide(cluster(model(), node("a", draining=True), node("b"), instance("i", "a")))
        assert started(plan) == {"new-1": ("b", (0,))}
        assert stopped(plan) == set()
        assert "being drained" in plan.acts[0].reason

    def test_they_stop_once_the_replacements_serve(self) -> None:
        parts = (model(), node("a", draining=True), node("b"), instance("i", "a"))
        assert nothing(decide(cluster(*parts, instance("k", "b", state=LOADING))))
        assert stopped(decide(cluster(*parts, instance("k", "b")))) == {"i"}

    def test_they_stop_at_once_where_nothing_else_has_room(self) -> None:
        plan = decide(cluster(model(), node("a", draining=True), instance("i", "a")))
        assert stopped(plan) == {"i"}
        assert "no other node has GPUs" in plan.acts[0].reason
        assert "1 node draining" in plan.reasons["chat"]

    def test_they_stop_when_their_replacement_has_failed(self) -> None:
        view = cluster(
            model(),
            node("a", draining=True),
            node("b"),
            instance("i", "a"),
            instance("k", "b", state=FAILED),
        )
        assert stopped(decide(view)) == {"i"}

    def test_one_that_does_not_serve_goes_at_once(self) -> None:
        loading = instance("i", "a", state=LOADING)
        plan = decide(cluster(model(), node("a", draining=True), node("b"), loading))
        assert stopped(plan) == {"i"}
        assert started(plan) == {"new-1": ("b", (0,))}


class TestFailed:
    def test_a_failed_instance_stays_and_is_shown(self) -> None:
        broken = instance("i", "a", state=FAILED, reason="out of memory")
        plan = decide(cluster(model(desired=1), node("a"), node("b"), broken))
        assert nothing(plan)
        assert plan.reasons["chat"] == "i on a failed: out of memory"

    def test_its_gpus_are_free_for_others(self) -> None:
        broken = instance("i", "a", 0, state=FAILED)
        plan = decide(cluster(model(desired=1), model("other"), node("a", gpus=1), broken))
        assert started(plan) == {"new-1": ("a", (0,))}
        assert [one.model for one in plan.puts] == ["other"]

    def test_its_gpus_are_free_for_another_try_as_soon_as_one_is_asked_for(self) -> None:
        broken = instance("i", "a", 0, state=FAILED, desired=STOPPED)
        plan = decide(cluster(model(desired=1), node("a", gpus=1), broken))
        assert started(plan) == {"new-1": ("a", (0,))}

    def test_its_gpus_are_not_free_while_the_agent_still_has_a_process_on_them(self) -> None:
        failing = instance("i", "a", 0, state=PENDING, reason="the worker failed: out of memory")
        plan = decide(cluster(model(desired=1), model("other"), node("a", gpus=1), failing))
        assert nothing(plan)
        assert "most free on a node: 0" in plan.reasons["other"]

    def test_what_runs_where_one_has_failed_can_be_adopted(self) -> None:
        broken = instance("i", "a", 0, of="other", state=FAILED)
        found = instance("old", "a", 0)
        plan = decide(cluster(model(), model("other"), node("a", gpus=1), broken, unknown=(found,)))
        assert [act.instance_id for act in plan.acts if act.action == "adopt"] == ["old"]


def serves(record: object) -> bool:
    return record.observed.state == READY and record.desired == RUNNING  # type: ignore[attr-defined]


def step(view: ClusterView) -> ClusterView:
    """What agents do: wanted instances become ready, the others go."""
    return dataclasses.replace(
        view,
        instances=tuple(
            dataclasses.replace(one, observed=dataclasses.replace(one.observed, state=READY))
            for one in itertools.filterfalse(lambda one: one.desired == STOPPED, view.instances)
        ),
    )
