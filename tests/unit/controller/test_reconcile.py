"""What the controller places and stops for the wanted number of instances."""

from __future__ import annotations

import dataclasses

import pytest

from services.global_controller.view import Liveness
from tests.support.cluster_states import (
    DRAINING,
    FAILED,
    LOADING,
    PENDING,
    READY,
    RUNNING,
    STOPPED,
    cluster,
    decide,
    instance,
    model,
    node,
    nothing,
    started,
    stopped,
)


class TestPlacing:
    def test_missing_instances_are_placed_on_free_gpus_with_the_models_spec(self) -> None:
        chat = model(desired=2)
        plan = decide(cluster(chat, node("a"), node("b")))
        assert started(plan) == {"new-1": ("a", (0,)), "new-2": ("b", (0,))}
        assert {one.spec for one in plan.puts} == {chat.spec}
        assert [act.action for act in plan.acts] == ["place", "place"]
        assert plan.acts[0].numbers["free_on_node"] == 2
        assert plan.reasons == {}

    def test_what_runs_as_wanted_is_left_alone(self) -> None:
        assert nothing(decide(cluster(model(desired=1), node("a"), instance("i", "a"))))

    @pytest.mark.parametrize("state", [PENDING, LOADING, FAILED, DRAINING])
    def test_an_instance_that_does_not_serve_is_not_placed_a_second_time(self, state: int) -> None:
        assert not started(decide(cluster(model(), node("a"), instance("i", "a", state=state))))

    def test_gpus_of_a_stopping_instance_are_not_free(self) -> None:
        gone = instance("i", "a", desired=STOPPED)
        plan = decide(cluster(model(), node("a", gpus=1), gone))
        assert nothing(plan)
        assert "most free on a node: 0" in plan.reasons["chat"]

    def test_gpus_of_an_unknown_worker_are_not_free(self) -> None:
        stranger = instance("other-1", "a", of="never-heard-of")
        assert nothing(decide(cluster(model(), node("a", gpus=1), unknown=(stranger,))))

    def test_lack_of_gpus_is_explained_with_the_numbers(self) -> None:
        plan = decide(cluster(model(gpus=2), node("a", gpus=1), node("b", gpus=1)))
        assert nothing(plan)
        assert plan.reasons["chat"] == (
            "1 of 1 instances cannot be placed: needs 2 GPUs on one node; most free on a node: 1"
        )

    def test_a_model_that_cannot_be_placed_does_not_hold_up_another(self) -> None:
        plan = decide(cluster(model("big", gpus=8), model("small"), node("a")))
        assert [one.model for one in plan.puts] == ["small"]
        assert set(plan.reasons) == {"big"}

    def test_the_more_urgent_model_gets_the_gpus_that_are_left(self) -> None:
        view = cluster(model("a", desired=2), model("b", desired=2, priority=-1), node("n", gpus=3))
        plan = decide(view)
        assert sorted(record.model for record in plan.puts) == ["a", "b", "b"]
        assert len({record.gpu_indexes for record in plan.puts}) == 3
        assert list(plan.reasons) == ["a"]

    def test_nothing_is_placed_on_a_node_before_it_has_reported_what_runs_there(self) -> None:
        assert nothing(decide(cluster(model(), node("a", liveness=Liveness.JOINING))))

    def test_an_id_that_is_taken_is_not_used_again(self) -> None:
        view = cluster(model(desired=2), node("a"), instance("new-1", "a", 0))
        assert set(started(decide(view))) == {"new-2"}


class TestScaling:
    def test_up_places_what_is_missing(self) -> None:
        plan = decide(cluster(model(desired=3), node("a"), node("b"), instance("i", "a")))
        assert sorted(started(plan).values()) == [("a", (1,)), ("b", (0,))]

    def test_down_stops_the_least_loaded(self) -> None:
        view = cluster(
            model(desired=1),
            node("a"),
            node("b"),
            instance("busy", "a"),
            instance("idle", "b"),
            load={"busy": 9, "idle": 1},
        )
        plan = decide(view)
        assert stopped(plan) == {"idle"}
        assert plan.puts[0].generation == 2
        assert plan.acts[0].numbers["requests"] == 1

    def test_down_stops_failed_then_loading_before_any_that_serves(self) -> None:
        parts = (
            node("a", gpus=4),
            instance("broken", "a", 0, state=FAILED),
            instance("loading", "a", 1, state=LOADING),
            instance("ready", "a", 2),
        )
        load = {"broken": 5, "loading": 5}
        assert stopped(decide(cluster(model(desired=2), *parts, load=load))) == {"broken"}
        assert stopped(decide(cluster(model(desired=1), *parts, load=load))) == {"broken", "loading"}

    def test_down_stops_on_the_fullest_node_among_equals(self) -> None:
        view = cluster(
            model(desired=2),
            node("a"),
            node("b"),
            instance("z1", "b", 0),
            instance("z2", "b", 1),
            instance("a1", "a", 0),
        )
        assert stopped(decide(view)) == {"z1"}

    def test_down_waits_for_what_a_node_that_comes_back_has_to_report(self) -> None:
        def stops(liveness: Liveness, state: int) -> set[str]:
            nodes = (node("a", liveness=liveness), node("b", gpus=3))
            here = instance("a-1", "a", state=state)
            others = (instance("b-1", "b", 0), instance("b-2", "b", 1, state=LOADING))
            return stopped(decide(cluster(model(desired=2), *nodes, here, *others)))

        assert stops(Liveness.JOINING, LOADING) == set()
        assert stops(Liveness.LIVE, READY) == {"b-2"}

    def test_to_zero_stops_everything(self) -> None:
        assert stopped(decide(cluster(model(desired=0), node("a"), instance("i", "a")))) == {"i"}


class TestSettling:
    def test_nothing_on_record_is_replaced_or_stopped(self) -> None:
        view = cluster(
            model(desired=1),
            node("a", liveness=Liveness.UNHEARD),
            node("b"),
            instance("i", "a"),
            instance("j", "b", 0),
            settling=True,
        )
        assert nothing(decide(view))

    def test_an_instance_on_a_node_not_heard_from_still_counts(self) -> None:
        view = cluster(
            model(), node("a", liveness=Liveness.UNHEARD), node("b"), instance("i", "a"), settling=True
        )
        assert nothing(decide(view))

    def test_a_new_model_is_placed_at_once(self) -> None:
        assert started(decide(cluster(model(), node("a"), settling=True))) == {"new-1": ("a", (0,))}


class TestUnknownWorkers:
    def test_one_of_a_model_that_is_short_is_adopted_on_the_gpus_that_it_has(self) -> None:
        chat = model(version=4, rollout=4)
        found = instance("old", "a", 1, version=3)
        plan = decide(cluster(chat, node("a"), unknown=(found,), settling=True))
        assert [(one.instance_id, one.gpu_indexes, one.spec) for one in plan.puts] == [
            ("old", (1,), chat.spec)
        ]
        assert plan.puts[0].spec_version == 3
        assert plan.puts[0].desired == RUNNING
        assert plan.puts[0].generation > found.generation
        assert [act.action for act in plan.acts] == ["adopt"]

    @pytest.mark.parametrize("version", [1, 7])
    def test_what_another_controller_started_is_never_taken_for_the_applied_spec(self, version: int) -> None:
        found = instance("old", "a", 0, version=version)
        plan = decide(cluster(model(version=1), node("a"), unknown=(found,)))
        assert [act.action for act in plan.acts] == ["adopt", "replace"]
        assert started(plan) == {"new-1": ("a", (1,))}

    def test_one_adopted_makes_room_for_its_replacement_where_no_gpu_is_free(self) -> None:
        found = instance("old", "a", 0, version=9)
        plan = decide(cluster(model(), node("a", gpus=1), unknown=(found,)))
        assert [act.action for act in plan.acts] == ["adopt", "replace"]
        assert stopped(plan) == {"old"}

    def test_one_that_serves_is_kept_while_its_replacement_loads(self) -> None:
        loading = instance("i", "a", 0, state=LOADING)
        extra = (instance("old", "a", 1, version=9),)
        plan = decide(cluster(model(), node("a"), loading, unknown=extra))
        assert [act.action for act in plan.acts] == ["adopt"]
        serves = dataclasses.replace(loading, observed=instance("i", "a").observed)
        assert stopped(decide(cluster(model(), node("a"), serves, *plan.puts))) == {"old"}

    def test_one_too_many_is_stopped_but_not_while_settling(self) -> None:
        parts = (model(), node("a"), instance("i", "a", 0))
        extra = (instance("old", "a", 1),)
        assert stopped(decide(cluster(*parts, unknown=extra))) == {"old"}
        assert nothing(decide(cluster(*parts, unknown=extra, settling=True)))

    def test_one_of_a_deleted_model_is_stopped(self) -> None:
        gone = model(deleted=True, desired=0)
        assert stopped(decide(cluster(gone, node("a"), unknown=(instance("old", "a"),)))) == {"old"}

    def test_one_of_a_model_never_heard_of_is_left_alone(self) -> None:
        assert nothing(decide(cluster(node("a"), unknown=(instance("old", "a"),))))

    @pytest.mark.parametrize("state", [PENDING, LOADING, FAILED])
    def test_one_that_does_not_serve_is_replaced_not_adopted(self, state: int) -> None:
        plan = decide(cluster(model(), node("a"), unknown=(instance("old", "a", 0, state=state),)))
        assert stopped(plan) == {"old"}
        assert started(plan) == {"new-1": ("a", (0 if state == FAILED else 1,))}

    def test_one_on_gpus_that_another_instance_holds_is_not_adopted(self) -> None:
        view = cluster(model(desired=2), node("a"), instance("i", "a", 0), unknown=(instance("old", "a", 0),))
        plan = decide(view)
        assert stopped(plan) == {"old"}
        assert started(plan) == {"new-1": ("a", (1,))}


class TestDeletion:
    def test_every_instance_stops(self) -> None:
        view = cluster(
            model(deleted=True, desired=0),
            node("a"),
            instance("i", "a", 0),
            instance("j", "a", 1, state=FAILED),
        )
        assert stopped(decide(view)) == {"i", "j"}

    def test_also_while_settling(self) -> None:
        view = cluster(model(deleted=True, desired=0), node("a"), instance("i", "a"), settling=True)
        assert stopped(decide(view)) == {"i"}

    def test_other_models_go_on(self) -> None:
        gone = model("old", deleted=True, desired=0)
        view = cluster(gone, model("chat"), node("a"), instance("i", "a", 0, of="old"), instance("j", "a", 1))
        assert stopped(decide(view)) == {"i"}
