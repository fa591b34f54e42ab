"""Who gives up GPUs to a more urgent model, where, and what nobody gets meanwhile."""

from __future__ import annotations

import pytest

from chiron.policy.decisions import Action, Retire, Start
from chiron.policy.fleet import Chiron, load_autoscaler
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role


def instance(
    key: str, node: str, role: Role = Role.MIXED, phase: Phase = Phase.READY, **more: object
) -> FleetInstance:
    return FleetInstance(key, node, role, phase, 50, 50, **more)  # type: ignore[arg-type]


def fleet(name: str, gpus: int, *instances: FleetInstance, queued: int = 0, **more: object) -> ModelFleet:
    values: dict[str, object] = {
        "min_instances": 0,
        "max_instances": 0,
        "ttft_slo_s": 10.0,
        "itl_slo_s": 0.2,
        "batch_itl_slo_s": 2.0,
        "instances": instances,
        "traffic": Traffic(1.0, queued_interactive=queued),
        "load_time_s": 20.0,
        "initial_batch_size": 50,
    }
    return ModelFleet(name, gpus, **(values | more))  # type: ignore[arg-type]


def urgent(gpus: int, *instances: FleetInstance, **more: object) -> ModelFleet:
    """Wishes for one instance."""
    return fleet("urgent", gpus, *instances, queued=10, priority=0, **more)


def busy(key: str, node: str, running: int, **more: object) -> FleetInstance:
    return instance(key, node, running_interactive=running, **more)


def decide(free: dict[str, int], *models: ModelFleet, budget: int = 0) -> tuple[Action, ...]:
    types = {node: node.partition("-")[0] for node in free}
    return Chiron().decide(FleetSnapshot(1.0, models, free, types, budget)).actions


def gone(actions: tuple[Action, ...]) -> list[str]:
    assert all(isinstance(action, Retire) for action in actions), actions
    return [action.instance_id for action in actions if isinstance(action, Retire)]


def test_those_go_whose_node_comes_to_have_room_however_busy_they_are() -> None:
    # On n-b the equal model keeps two of four GPUs: what is idle there can make no room for four.
    equal = fleet("equal", 2, busy("e", "n-b", 10), priority=0)
    idle = [busy(f"idle-{n}", "n-b", 0) for n in "12"]
    full = [busy(f"full-{n}", "n-a", 40) for n in "12"]
    low = fleet("low", 1, *idle, *full, priority=1)
    assert gone(decide({"n-a": 2, "n-b": 0}, urgent(4), equal, low)) == ["full-1", "full-2"]


def test_where_several_nodes_suit_the_one_that_costs_least_gives_room() -> None:
    low = fleet(
        "low",
        1,
        busy("many", "n-a", 40),
        instance("batch", "n-b", Role.BATCH, running_batch=45),
        busy("few", "n-c", 5),
        priority=1,
    )
    lowest = fleet("lowest", 1, busy("all", "n-d", 50), priority=2)
    free = {"n-a": 1, "n-b": 1, "n-c": 1, "n-d": 1}
    # The least urgent first, then batch before interactive, then the fewest requests; more GPUs than needed
    # are given up nowhere.
    for expected, nodes in (("all", "abcd"), ("batch", "abc"), ("few", "ac"), ("many", "a")):
        some = {f"n-{letter}": free[f"n-{letter}"] for letter in nodes}
        assert gone(decide(some, urgent(2), low, lowest)) == [expected]


def test_one_that_a_larger_one_makes_needless_stays() -> None:
    small = fleet("small", 1, busy("s", "n", 0), priority=1)
    large = fleet("large", 4, busy("l", "n", 20), priority=1)
    assert gone(decide({"n": 0}, urgent(4), small, large)) == ["l"]
    assert gone(decide({"n": 0}, urgent(5), small, large)) == ["s", "l"]


def test_what_drains_is_room_on_its_own_node_only() -> None:
    drains = [instance(f"d-{n}", "n-a", phase=Phase.DRAINING) for n in "123"]
    stays = [busy(f"s-{n}", "n-b", 1) for n in "123"]
    low = fleet("low", 1, *drains, *stays, priority=1)
    assert gone(decide({"n-a": 1, "n-b": 1}, urgent(4), low)) == []
    assert gone(decide({"n-a": 0, "n-b": 1}, urgent(4), low)) == ["s-1", "s-2", "s-3"]


def test_room_for_two_is_made_twice_and_what_is_there_already_counts_once() -> None:
    low = fleet("low", 1, *(busy(f"{node}-{n}", f"n-{node}", 1) for node in "ab" for n in "123"), priority=1)
    two = fleet("urgent", 4, queued=70, priority=0)
    assert len(gone(decide({"n-a": 1, "n-b": 1}, two, low))) == 6
    drains = instance("d", "n-a", phase=Phase.DRAINING)
    eight = fleet("low", 1, drains, *(busy(f"a-{n}", "n-a", 1) for n in "1234567"), priority=1)
    assert len(gone(decide({"n-a": 0}, two, eight))) == 7


def test_where_no_room_can_be_made_nobody_goes_and_the_less_urgent_start() -> None:
    kept = fleet("kept", 1, busy("k", "n", 10), priority=1, min_instances=1)
    low = fleet("low", 1, queued=40, priority=2)
    (start,) = decide({"n": 3}, urgent(4), kept, low)
    assert isinstance(start, Start)
    assert (start.model, start.count) == ("low", 1)


def test_nodes_of_another_type_give_no_room() -> None:
    low = fleet("low", 1, busy("other", "l4-a", 0), busy("same", "h100-a", 40), priority=1)
    free = {"l4-a": 1, "h100-a": 1}
    assert gone(decide(free, urgent(2, gpu_type="h100"), low)) == ["same"]
    assert gone(decide(free, urgent(2), low)) == ["other"]


def test_an_instance_that_goes_changes_no_role_and_its_model_starts_nothing() -> None:
    low = fleet("low", 1, instance("only", "n", Role.BATCH, running_batch=5), queued=60, priority=1)
    assert gone(decide({"n": 1}, urgent(2), low)) == ["only"]


def test_gpus_that_become_free_where_room_is_made_go_to_nobody_else() -> None:
    drains = [instance(f"d-{n}", "n-a", phase=Phase.DRAINING) for n in "12"]
    low = fleet("low", 1, *drains, queued=40, priority=1)
    assert decide({"n-a": 1, "n-b": 0}, urgent(3), low) == ()
    # A start names no node, and placement might choose n-a.
    assert decide({"n-a": 1, "n-b": 1}, urgent(3), low) == ()
    # It cannot, where nothing is free yet, or where its GPUs are of another type.
    for free, gpus in (({"n-a": 0, "n-b": 1}, 2), ({"n-a": 1, "l4-b": 1}, 3)):
        kind = "n" if "n-b" in free else "l4"
        low = fleet("low", 1, *drains, queued=40, priority=1, gpu_type=kind)
        (start,) = decide(free, urgent(gpus, gpu_type="n"), low)
        assert isinstance(start, Start)
        assert start.model == "low"


def test_no_sleeper_of_a_less_urgent_model_wakes_where_room_is_made() -> None:
    drains = fleet("lowest", 1, instance("d", "n-a", phase=Phase.DRAINING), priority=2)
    for node, wakes in (("n-a", 0), ("n-b", 1)):
        sleeper = instance("x", node, phase=Phase.SLEEPING, can_wake=True)
        low = fleet("low", 1, sleeper, queued=10, priority=1)
        assert len(decide({"n-a": 1, "n-b": 1}, urgent(2), low, drains)) == wakes


def test_the_budget_is_made_room_in_and_kept_like_a_node() -> None:
    low = fleet("low", 1, *(busy(f"l-{n}", "n-a", n) for n in (3, 1, 2)), queued=200, priority=1)
    free = {"n-a": 5, "n-b": 8}
    assert gone(decide(free, urgent(2), low, budget=3)) == ["l-1", "l-2"]
    # One GPU of the budget is left, and one more is on its way: neither is for the less urgent.
    drains = fleet("low", 1, instance("d", "n-a", phase=Phase.DRAINING), queued=200, priority=1)
    assert decide(free, urgent(2), drains, budget=2) == ()
    # Its fewest instances stay; as the budget can never do, the node's two do not go in vain.
    kept = fleet("low", 1, *(busy(f"l-{n}", "n-a", n) for n in (1, 2)), priority=1, min_instances=1)
    assert decide({"n-a": 1}, urgent(2), kept, budget=2) == ()


def test_a_sleeper_does_not_end_at_the_tick_at_which_its_model_starts_another() -> None:
    autoscaler = Chiron()
    sleeper = instance("x", "n-a", phase=Phase.SLEEPING, can_wake=True)
    calm = fleet("low", 2, sleeper, priority=1)
    autoscaler.decide(FleetSnapshot(0.0, (calm,), {"n-a": 2}))
    # The urgent model starts on the sleeper's node; what it leaves does for a start on the other.
    wishes = fleet("low", 2, sleeper, queued=10, priority=1)
    decision = autoscaler.decide(
        FleetSnapshot(30.0, (urgent(2, gpu_type="a"), wishes), {"n-a": 2, "n-b": 2}, {"n-a": "a"})
    )
    assert [(type(action), action.model) for action in decision.actions] == [
        (Start, "urgent"),
        (Start, "low"),
    ]


@pytest.mark.parametrize("name", ["chiron", "chiron-paper"])
def test_a_model_that_was_removed_comes_back_as_a_new_one(name: str) -> None:
    autoscaler = load_autoscaler(name)

    def theta(now_s: float, *models: ModelFleet) -> list[float]:
        decision = autoscaler.decide(FleetSnapshot(now_s, models, {"n": 0}))
        return [found.numbers["theta"] for found in decision.assessments]

    # Demand and arrivals that double every load time from 1 to 2^29: Θ is half, once it is measured.
    learned = [
        theta(20.0 * n, fleet("m", 1, traffic=Traffic(20.0, 2**n, queued_interactive=2**n)))
        for n in range(30)
    ]
    assert learned[0] == [0.85]
    assert learned[-1] != [0.85]
    assert theta(600.0) == []
    assert theta(620.0, fleet("m", 1, queued=1)) == [0.85]


def test_a_model_that_gives_instances_up_starts_none_elsewhere_at_that_tick() -> None:
    low = fleet("low", 1, busy("l-1", "n-a", 50), busy("l-2", "n-a", 50), queued=40, priority=1)
    assert gone(decide({"n-a": 0, "n-b": 1}, urgent(2), low)) == ["l-1", "l-2"]


def test_the_budget_that_is_owed_goes_to_no_start_on_nodes_of_another_type_either() -> None:
    drains = fleet("drains", 1, instance("d", "n-a", phase=Phase.DRAINING), priority=2)
    low = fleet("low", 1, queued=10, priority=1, gpu_type="l4")
    free = {"n-a": 1, "l4-b": 1}
    assert decide(free, urgent(2, gpu_type="n"), low, drains, budget=2) == ()
    (start,) = decide(free, urgent(2, gpu_type="n"), low, drains, budget=4)
    assert isinstance(start, Start)
    assert start.model == "low"
