"""Which node and GPUs a new instance gets.

Instances of one model spread over nodes first, so that losing a node costs each model as little as possible;
among equals the node with the fewest GPUs left over wins (best fit), so that large instances still find room.
Models take turns, the one that needs most GPUs first, so that none is starved by another's many instances.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

_ROUNDING = 1e-9
NOT_CONNECTED = "not connected"
"""What a refusal says of nodes whose agent is away."""


@dataclass(frozen=True, slots=True)
class NodeGpus:
    """A node as placement sees it, as fresh as the node's last report."""

    node_id: str
    healthy: frozenset[int]
    """Indexes of its healthy GPUs."""
    used: frozenset[int] = frozenset()
    """Indexes of GPUs that an instance holds: loading and draining ones hold theirs too."""
    live: bool = True
    """Its agent is connected and has reported what runs there."""
    draining: bool = False
    unhealthy: int = 0
    """How many GPUs it has that are not healthy."""
    residues: Mapping[int, float] = field(default_factory=dict)
    """Index → share of the memory that sleepers keep, of those GPUs that they keep a part of."""


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
    memory_share: float = 1.0
    """Share of each GPU's memory that an instance takes."""


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


def place(
    nodes: Sequence[NodeGpus], wants: Sequence[Want], *, budget_left: int | None = None
) -> PlacementPlan:
    """Places the wanted instances on free healthy GPUs of live nodes that are not draining.

    The result depends only on the arguments' contents, not on their order. An instance is refused only when
    no usable node has enough free GPUs left, or when it would take more than the `budget_left`, in GPUs.

    A GPU of which sleepers keep a part is free for an instance for which they leave room. Such GPUs go first:
    somebody holds them already, so that they cost nothing of the budget.
    """
    usable = {node.node_id: node for node in nodes if node.live and not node.draining}
    free = {node_id: sorted(node.healthy - node.used) for node_id, node in usable.items()}
    fitting = _Fitting(map(len, free.values()))
    changed: list[str] = []
    ordered = sorted(wants, key=lambda want: (-want.gpus, want.model))
    residues = {node_id: node.residues for node_id, node in usable.items() if node.residues}
    turns = deque(_Turn(want, free, residues, changed) for want in ordered if want.count > 0)
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    while turns:
        turn = turns.popleft()
        want = turn.want
        shared = turn.best_shared()
        if shared is None and budget_left is not None and want.gpus > budget_left:
            refusals.append(_beyond_budget(want, turn.left, budget_left))
            continue
        node_id = shared or turn.best()
        if node_id is None:
            having = {name: turn.fitting(name) for name in free}
            refusals.append(_refusal(nodes, having, want, turn.left))
            continue
        there, candidates = turn.there.get(node_id, 0), fitting.count(want.gpus)
        on = turn.shared(node_id) if shared else turn.fitting(node_id)
        placements.append(_placement(want, node_id, on, there, candidates))
        if shared:
            placements[-1] = _beside_sleepers(placements[-1])
        elif budget_left is not None:
            kept = residues.get(node_id, {})
            budget_left -= sum(index not in kept for index in placements[-1].gpu_indexes)
        taken = set(placements[-1].gpu_indexes)
        before = len(free[node_id])
        free[node_id] = [index for index in free[node_id] if index not in taken]
        fitting.moved(before, len(free[node_id]))
        changed.append(node_id)
        turn.there[node_id] = there + 1
        turn.left -= 1
        if turn.left:
            turns.append(turn)
    return PlacementPlan(tuple(placements), tuple(refusals))


class _Fitting:
    """How many nodes have a number of free GPUs or more."""

    def __init__(self, free_counts: Iterable[int]) -> None:
        self._nodes = Counter(free_counts)

    def count(self, gpus: int) -> int:
        return sum(nodes for free, nodes in self._nodes.items() if free >= gpus)

    def moved(self, before: int, after: int) -> None:
        """A node has `after` free GPUs instead of `before`."""
        self._nodes[before] -= 1
        self._nodes[after] += 1


class _Turn:
    """One model's turns: a heap of nodes, the best first.

    Each change of a node pushes an entry that is true; those that are true no more are passed over.
    """

    def __init__(
        self,
        want: Want,
        free: Mapping[str, list[int]],
        residues: Mapping[str, Mapping[int, float]],
        changed: Sequence[str],
    ) -> None:
        """`free` GPUs by node and the log of nodes that `changed` go on changing."""
        self._residues = residues
        self.want = want
        self.left = want.count
        self.there = dict(want.on_nodes)
        self._free = free
        self._changed = changed
        self._seen = 0
        self._heap: list[tuple[int, int, str]] = []

    def fitting(self, node_id: str) -> list[int]:
        """Free GPUs of the node that have room for the instance."""
        free, kept = self._free[node_id], self._residues.get(node_id)
        if not kept:
            return free
        return [index for index in free if kept.get(index, 0.0) + self.want.memory_share <= 1 + _ROUNDING]

    def shared(self, node_id: str) -> list[int]:
        """Those of them of which sleepers keep a part."""
        return [index for index in self.fitting(node_id) if index in self._residues[node_id]]

    def best_shared(self) -> str | None:
        """The node for the next instance, where it can have GPUs of sleepers alone; None: there is none."""
        ranks = [
            (self.there.get(node_id, 0), len(self.shared(node_id)), node_id) for node_id in self._residues
        ]
        return min((rank for rank in ranks if rank[1] >= self.want.gpus), default=(0, 0, None))[2]

    def best(self) -> str | None:
        """The node for the next instance; None when none has room."""
        self._catch_up()
        while self._heap:
            there, free, node_id = self._heap[0]
            if (there, free) == (self.there.get(node_id, 0), len(self.fitting(node_id))):
                return node_id
            heappop(self._heap)
        return None

    def _catch_up(self) -> None:
        news = self._changed[self._seen :]
        afresh = not self._heap or len(news) > len(self._heap)
        nodes = self._free if afresh else dict.fromkeys(news)
        entries = [
            (self.there.get(node_id, 0), len(self.fitting(node_id)), node_id)
            for node_id in nodes
            if len(self.fitting(node_id)) >= self.want.gpus
        ]
        if afresh:
            heapify(entries)
            self._heap = entries
        else:
            for entry in entries:
                heappush(self._heap, entry)
        self._seen += len(news)


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


def _beside_sleepers(placement: Placement) -> Placement:
    reason = f"only sleepers keep a part of its GPUs, and leave it room; {placement.reason}"
    return replace(placement, reason=reason)


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


def _beyond_budget(want: Want, missing: int, left: int) -> Refusal:
    reason = f"needs {_count(want.gpus, 'GPU')}; the GPU budget allows {max(0, left)} more"
    return Refusal(want.model, missing, reason, {"gpus": want.gpus, "missing": missing, "budget_left": left})


def _refusal(nodes: Sequence[NodeGpus], free: Mapping[str, list[int]], want: Want, missing: int) -> Refusal:
    draining = sum(node.live and node.draining for node in nodes)
    gone = sum(not node.live for node in nodes)
    unhealthy = sum(node.unhealthy for node in nodes if node.node_id in free)
    most = max((len(indexes) for indexes in free.values()), default=0)
    reason = f"needs {_count(want.gpus, 'GPU')} on one node; most free on a node: {most}"
    excluded = [
        f"{_count(number, what)} {state}"
        for number, what, state in (
            (gone, "node", NOT_CONNECTED),
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
