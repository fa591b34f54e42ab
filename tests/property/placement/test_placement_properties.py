"""What holds for every placement."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.placement import NodeGpus, Want, place

_INDEXES = st.frozensets(st.integers(0, 7), max_size=8)


@st.composite
def clusters(draw: st.DrawFn) -> list[NodeGpus]:
    count = draw(st.integers(0, 6))
    return [
        NodeGpus(
            node_id=f"n{number}",
            healthy=draw(_INDEXES),
            used=draw(_INDEXES),
            live=draw(st.booleans()),
            draining=draw(st.booleans()),
        )
        for number in range(count)
    ]


@st.composite
def wishes(draw: st.DrawFn) -> list[Want]:
    count = draw(st.integers(0, 4))
    return [
        Want(
            model=f"m{number}",
            gpus=draw(st.integers(1, 8)),
            count=draw(st.integers(0, 10)),
            on_nodes=draw(st.dictionaries(st.sampled_from(["n0", "n1", "n2"]), st.integers(1, 3))),
        )
        for number in range(count)
    ]


def usable(node: NodeGpus) -> frozenset[int]:
    return node.healthy - node.used if node.live and not node.draining else frozenset()


@given(clusters(), wishes())
def test_each_instance_gets_its_gpus_and_no_gpu_is_given_twice(
    nodes: list[NodeGpus], wants: list[Want]
) -> None:
    sizes = {want.model: want.gpus for want in wants}
    free = {node.node_id: usable(node) for node in nodes}
    given_out: Counter[tuple[str, int]] = Counter()
    for one in place(nodes, wants).placements:
        assert len(one.gpu_indexes) == sizes[one.model]
        given_out.update((one.node_id, index) for index in one.gpu_indexes)
    assert all(index in free[node_id] for node_id, index in given_out)
    assert all(count == 1 for count in given_out.values())


@given(clusters(), wishes())
def test_every_wanted_instance_is_placed_or_refused(nodes: list[NodeGpus], wants: list[Want]) -> None:
    plan = place(nodes, wants)
    placed = Counter(one.model for one in plan.placements)
    refused = {one.model: one.missing for one in plan.refusals}
    for want in wants:
        assert placed[want.model] + refused.get(want.model, 0) == want.count


@given(clusters(), wishes())
def test_it_is_refused_only_when_no_node_has_room(nodes: list[NodeGpus], wants: list[Want]) -> None:
    plan = place(nodes, wants)
    left = {node.node_id: len(usable(node)) for node in nodes}
    for one in plan.placements:
        left[one.node_id] -= len(one.gpu_indexes)
    sizes = {want.model: want.gpus for want in wants}
    for refusal in plan.refusals:
        assert max(left.values(), default=0) < sizes[refusal.model]


@given(clusters(), wishes())
def test_each_goes_where_fewest_of_its_model_are_then_where_fewest_gpus_are_left(
    nodes: list[NodeGpus], wants: list[Want]
) -> None:
    free = {node.node_id: len(usable(node)) for node in nodes}
    there = {want.model: Counter(want.on_nodes) for want in wants}
    sizes = {want.model: want.gpus for want in wants}
    for one in place(nodes, wants).placements:
        fitting = [node_id for node_id, count in free.items() if count >= sizes[one.model]]
        assert one.node_id == min(
            fitting, key=lambda node_id: (there[one.model][node_id], free[node_id], node_id)
        )
        assert one.numbers["candidates"] == len(fitting)
        free[one.node_id] -= sizes[one.model]
        there[one.model][one.node_id] += 1


@given(clusters(), wishes(), st.randoms(use_true_random=False))
def test_the_order_of_nodes_and_models_does_not_matter(
    nodes: list[NodeGpus], wants: list[Want], order: random.Random
) -> None:
    expected = place(nodes, wants)
    assert place(order.sample(nodes, len(nodes)), order.sample(wants, len(wants))) == expected


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 24))
def test_instances_of_one_model_spread_evenly_over_equal_nodes(nodes: int, size: int, count: int) -> None:
    equal = [NodeGpus(f"n{number}", frozenset(range(4))) for number in range(nodes)]
    plan = place(equal, [Want("chat", size, count)])
    spread = Counter({node.node_id: 0 for node in equal})
    spread.update(one.node_id for one in plan.placements)
    assert max(spread.values()) - min(spread.values()) <= 1
