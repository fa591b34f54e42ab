"""Which node and which GPUs, by example."""

from __future__ import annotations

from chiron.policy.placement import NodeGpus, Want, place


def node(name: str, gpus: int, *, used: tuple[int, ...] = (), **state: bool) -> NodeGpus:
    return NodeGpus(name, frozenset(range(gpus)), frozenset(used), **state)


def places(nodes: list[NodeGpus], *wants: Want) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.model, one.node_id, one.gpu_indexes) for one in place(nodes, wants).placements]


def test_the_fitting_node_with_the_fewest_free_gpus_wins() -> None:
    nodes = [node("roomy", 8), node("tight", 8, used=(0, 1, 2, 3, 4, 5)), node("full", 2, used=(0, 1))]
    assert places(nodes, Want("chat", 2, 1)) == [("chat", "tight", (6, 7))]


def test_instances_of_one_model_go_to_different_nodes_first() -> None:
    nodes = [node("a", 2), node("b", 8)]
    assert places(nodes, Want("chat", 1, 2)) == [("chat", "a", (0,)), ("chat", "b", (0,))]
    assert places(nodes, Want("chat", 1, 1, on_nodes={"a": 1})) == [("chat", "b", (0,))]


def test_neighbouring_gpus_are_chosen_from_the_shortest_run_that_holds_them() -> None:
    assert places([node("a", 8, used=(1, 4, 5))], Want("chat", 2, 1)) == [("chat", "a", (2, 3))]


def test_scattered_gpus_are_used_when_there_is_no_run() -> None:
    assert places([node("a", 5, used=(1, 3))], Want("chat", 3, 1)) == [("chat", "a", (0, 2, 4))]


def test_the_model_that_needs_most_gpus_goes_first() -> None:
    plan = place([node("a", 4)], [Want("small", 1, 1), Want("big", 4, 1)])
    assert [one.model for one in plan.placements] == ["big"]
    assert [one.model for one in plan.refusals] == ["small"]


def test_models_take_turns() -> None:
    models = [one for one, _, _ in places([node("a", 4)], Want("x", 1, 9), Want("y", 1, 2))]
    assert models == ["x", "y", "x", "y"]


def test_dead_and_draining_nodes_and_unhealthy_gpus_are_left_out_and_counted() -> None:
    nodes = [
        node("dead", 4, live=False),
        node("draining", 4, draining=True),
        NodeGpus("sick", frozenset({0}), unhealthy=3),
    ]
    plan = place(nodes, [Want("chat", 2, 3)])
    assert plan.placements == ()
    refusal = plan.refusals[0]
    assert refusal.missing == 3
    assert refusal.reason == (
        "needs 2 GPUs on one node; most free on a node: 1 "
        "(1 node not connected, 1 node draining, 3 GPUs unhealthy)"
    )
    assert refusal.numbers["most_free_on_node"] == 1


def test_no_node_at_all_is_said() -> None:
    assert "no node has joined" in place([], [Want("chat", 1, 1)]).refusals[0].reason


def test_a_placement_carries_its_reason_and_numbers() -> None:
    one = place([node("a", 4, used=(0,))], [Want("chat", 2, 1)]).placements[0]
    assert one.numbers == {"gpus": 2, "free_on_node": 3, "already_on_node": 0, "candidates": 1}
    assert "a has 0 other instances of chat" in one.reason
