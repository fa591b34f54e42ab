"""Which node and GPUs a new instance gets.

Instances of one model spread over nodes first, so that losing a node costs each model as little as possible;
among equals the node with the fewest GPUs left over wins (best fit), so that large instances still find room.
Models take turns, the one that needs most GPUs first, so that none is starved by another's many instances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """A node as placement sees it, as fresh as the node's last report."""

    node_id: str
    healthy: frozenset[int]
    """Indexes of its healthy GPUs."""
    used: frozenset[int] = frozenset()
    """Indexes of GPUs that an instance holds: loading, draining and failed ones hold theirs too."""
    live: bool = True
    """Its agent is connected and has reported what runs there."""
    draining: bool = False
    unhealthy: int = 0
    """How many GPUs it has that are not healthy."""


@dataclass(frozen=True, slots=True)
class Want:
    """Instances that one model is short of."""

    model: str
    gpus: int
    """GPUs per instance, all on one node; >= 1."""
    count: int
    """Instances to place."""
    on_nodes: Mapping[str, int] = field(default_factory=dict)
    """Instances of the model that run already, by node."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One instance's place, and why there."""

    model: str
    node_id: str
    gpu_indexes: tuple[int, ...]
    reason: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model for which not all that was wanted could be placed."""

    model: str
    missing: int
    """Instances not placed."""
    reason: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """What fits, in the order in which it was placed, and what does not."""

    placements: tuple[Placement, ...]
    refusals: tuple[Refusal, ...]


def place(nodes: Sequence[NodeGpus], wants: Sequence[Want]) -> PlacementPlan:
    """Places the wanted instances on free healthy GPUs of live nodes that are not draining.

    The result depends only on the arguments' contents, not on their order. An instance is refused only when
    no usable node has enough free GPUs left.
    """
    usable = {node.node_id: node for node in nodes if node.live and not node.draining}
    free = {node_id: sorted(node.healthy - node.used) for node_id, node in usable.items()}
    counts = {want.model: Counter(want.on_nodes) for want in wants}
    left = {want.model: want.count for want in wants}
    turns = [want for want in sorted(wants, key=lambda want: (-want.gpus, want.model)) if want.count > 0]
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    while turns:
        again = []
        for want in turns:
            there = counts[want.model]
            fitting = [node_id for node_id, indexes in free.items() if len(indexes) >= want.gpus]
            if not fitting:
                refusals.append(_refusal(nodes, free, want, left[want.model]))
                continue
            node_id = min(fitting, key=lambda one: (there[one], len(free[one]), one))
            placements.append(_placement(want, node_id, free[node_id], there[node_id], len(fitting)))
            taken = set(placements[-1].gpu_indexes)
            free[node_id] = [index for index in free[node_id] if index not in taken]
            there[node_id] += 1
            left[want.model] -= 1
            if left[want.model]:
                again.append(want)
        turns = again
    return PlacementPlan(tuple(placements), tuple(refusals))


def _placement(want: Want, node_id: str, free: list[int], already: int, candidates: int) -> Placement:
    chosen = _neighbours(free, want.gpus)
    remain = len(free) - want.gpus
    reason = (
        f"{node_id} has {_count(already, 'other instance')} of {want.model}, the fewest of "
        f"{_count(candidates, 'node')} with {_count(want.gpus, 'free GPU')}, and {_count(remain, 'GPU')} "
        "stay free there"
    )
    numbers = {
        "gpus": want.gpus,
        "free_on_node": len(free),
        "already_on_node": already,
        "candidates": candidates,
    }
    return Placement(want.model, node_id, chosen, reason, numbers)


def _neighbours(free: list[int], count: int) -> tuple[int, ...]:
    """The indexes out of the shortest run of consecutive free ones that is long enough, else the lowest.

    Neighbouring indexes usually share the fastest link.
    """
    runs: list[list[int]] = []
    for index in free:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    enough = [run for run in runs if len(run) >= count]
    return tuple(min(enough, key=len)[:count] if enough else free[:count])


def _refusal(nodes: Sequence[NodeGpus], free: Mapping[str, list[int]], want: Want, missing: int) -> Refusal:
    draining = sum(node.live and node.draining for node in nodes)
    gone = sum(not node.live for node in nodes)
    unhealthy = sum(node.unhealthy for node in nodes if node.node_id in free)
    most = max((len(indexes) for indexes in free.values()), default=0)
    reason = f"needs {_count(want.gpus, 'GPU')} on one node; most free on a node: {most}"
    excluded = [
        f"{_count(number, what)} {state}"
        for number, what, state in (
            (gone, "node", "not connected"),
            (draining, "node", "draining"),
            (unhealthy, "GPU", "unhealthy"),
        )
        if number
    ]
    if not nodes:
        reason += " (no node has joined)"
    elif excluded:
        reason += f" ({', '.join(excluded)})"
    numbers = {
        "gpus": want.gpus,
        "missing": missing,
        "most_free_on_node": most,
        "free_in_all": sum(len(indexes) for indexes in free.values()),
        "nodes": len(free),
        "nodes_not_connected": gone,
        "nodes_draining": draining,
        "gpus_unhealthy": unhealthy,
    }
    return Refusal(want.model, missing, reason, numbers)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
