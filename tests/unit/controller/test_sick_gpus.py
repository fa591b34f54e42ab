"""Instances on GPUs that are not healthy: none is placed there, and those there move where there is room."""

from __future__ import annotations

import pytest

from tests.support.cluster_states import (
    FAILED,
    LOADING,
    cluster,
    decide,
    instance,
    model,
    node,
    nothing,
    started,
    stopped,
)


def test_an_instance_on_a_sick_gpu_is_placed_elsewhere_and_serves_on_meanwhile() -> None:
    plan = decide(cluster(model(), node("a", 1, unhealthy=(0,)), node("b"), instance("i", "a", 0)))
    assert started(plan) == {"new-1": ("b", (0,))}
    assert stopped(plan) == set()
    (act,) = plan.acts
    assert act.reason.startswith("for i, because GPU 0 of a is not healthy")


def test_the_sick_nodes_own_healthy_gpu_will_do() -> None:
    plan = decide(cluster(model(), node("a", unhealthy=(0,)), instance("i", "a", 0)))
    assert started(plan) == {"new-1": ("a", (1,))}


def test_it_goes_once_another_one_serves_in_its_place() -> None:
    sick = node("a", unhealthy=(0,))
    both = (instance("i", "a", 0), instance("j", "b", 0, state=LOADING))
    assert nothing(decide(cluster(model(), sick, node("b"), *both)))
    plan = decide(cluster(model(), sick, node("b"), instance("i", "a", 0), instance("j", "b", 0)))
    assert stopped(plan) == {"i"}
    assert plan.acts[0].reason == "GPU 0 of a is not healthy () and enough others serve"


def test_without_room_elsewhere_it_serves_on_and_the_model_says_what_is_missing() -> None:
    plan = decide(cluster(model(), node("a", 1, unhealthy=(0,)), instance("i", "a", 0)))
    assert (plan.puts, plan.acts) == ((), ())
    assert "1 GPU unhealthy" in plan.reasons["chat"]


@pytest.mark.parametrize("state", [FAILED, LOADING])
def test_one_that_does_not_serve_there_goes_at_once(state: int) -> None:
    there = instance("i", "a", 0, state=state)  # type: ignore[arg-type]
    plan = decide(cluster(model(), node("a", 1, unhealthy=(0,)), node("b"), there))
    assert stopped(plan) == {"i"}
    assert started(plan) == {"new-1": ("b", (0,))}


def test_while_the_controller_settles_nothing_moves() -> None:
    view = cluster(
        model(), node("a", unhealthy=(0,)), node("b"), instance("i", "a", 0, state=LOADING), settling=True
    )
    assert nothing(decide(view))


def test_of_an_instance_on_several_gpus_one_sick_gpu_is_enough() -> None:
    wide = model(gpus=2)
    plan = decide(cluster(wide, node("a", unhealthy=(1,)), node("b"), instance("i", "a", 0, 1)))
    assert started(plan) == {"new-1": ("b", (0, 1))}


def test_a_gpu_that_its_node_has_lost_is_left_like_a_sick_one() -> None:
    fewer = node("a", 1)
    plan = decide(cluster(model(), fewer, node("b", 1), instance("i", "a", 1)))
    assert started(plan) in ({"new-1": ("a", (0,))}, {"new-1": ("b", (0,))})
    assert stopped(plan) == set()
    assert plan.acts[0].reason.startswith("for i, because GPU 1 of a is not there any more")
    plan = decide(cluster(model(), fewer, node("b", 1), instance("i", "a", 1), instance("j", "b", 0)))
    assert stopped(plan) == {"i"}


def test_the_least_busy_of_several_goes_first() -> None:
    view = cluster(
        model(desired=2),
        node("a", unhealthy=(0, 1)),
        node("b"),
        instance("i", "a", 0),
        instance("j", "a", 1),
        instance("k", "b", 0),
        instance("l", "b", 1, state=LOADING),
        load={"i": 5, "j": 1},
    )
    assert stopped(decide(view)) == {"j"}
