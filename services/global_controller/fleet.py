"""One model's instances, sorted by how they count, and the state of one reconciling pass."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2
from chiron.policy.decisions import Alternative
from chiron.policy.placement import NodeGpus
from chiron.store import GpuRecord, InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.sleep_costs import SleepCosts, sleep_costs
from services.global_controller.view import Act, ClusterView, Health, Liveness, NodeView, Plan

_SETTLED_STATES = (
    types_pb2.INSTANCE_STATE_READY,
    types_pb2.INSTANCE_STATE_FAILED,
    types_pb2.INSTANCE_STATE_SLEEPING,
    types_pb2.INSTANCE_STATE_DRAINING,
)


def is_ready(record: InstanceRecord) -> bool:
    """Whether the instance was last seen accepting requests."""
    return record.observed.state == types_pb2.INSTANCE_STATE_READY


def is_failed(record: InstanceRecord) -> bool:
    """Whether the instance's agent has given it up, which it says once no process of it is left."""
    return record.observed.state == types_pb2.INSTANCE_STATE_FAILED


def is_coming(record: InstanceRecord) -> bool:
    """Whether the instance is on its way to serve."""
    if record.observed.state == types_pb2.INSTANCE_STATE_SLEEPING:
        return record.desired == control_pb2.DESIRED_STATE_RUNNING
    return record.observed.state not in _SETTLED_STATES


def is_to_sleep(record: InstanceRecord) -> bool:
    """Whether the instance is to sleep, or sleeps: it is no capacity, and none of those that are wanted."""
    return record.desired == control_pb2.DESIRED_STATE_SLEEPING


def is_asleep(record: InstanceRecord) -> bool:
    """Whether the instance sleeps on GPUs that others may own: its agent has said so, and nobody has woken it
    since."""
    sleeps = record.observed.state == types_pb2.INSTANCE_STATE_SLEEPING
    return sleeps and record.desired != control_pb2.DESIRED_STATE_RUNNING


def is_given_up(record: InstanceRecord) -> bool:
    """Whether the instance stays on record only to be seen: its agent is told of it no more, because one that
    has started again would try again, on GPUs that others have by then."""
    return is_failed(record) and not is_stopping(record)


def is_stopping(record: InstanceRecord) -> bool:
    """Whether the instance is wanted no more."""
    return record.desired == control_pb2.DESIRED_STATE_STOPPED


def held_gpus(record: InstanceRecord) -> tuple[int, ...]:
    """Indexes of the GPUs that nobody else may own: loading, waking and draining instances own theirs."""
    return () if is_asleep(record) else occupied_gpus(record)


def occupied_gpus(record: InstanceRecord) -> tuple[int, ...]:
    """Indexes of the GPUs of which the instance has a part, asleep or awake."""
    return () if is_failed(record) else record.gpu_indexes


def node_gpus(
    nodes: Iterable[NodeView],
    instances: Iterable[InstanceRecord],
    costs: Mapping[str, SleepCosts] | None = None,
) -> list[NodeGpus]:
    """Every node's GPUs, which of them these instances own, and what sleepers keep of the others.

    Args:
        nodes: the nodes.
        instances: on record or not.
        costs: what sleep costs, by model; of others what their instances' own specs say.
    """
    used: dict[str, set[int]] = defaultdict(set)
    residues: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for record in instances:
        used[record.node_id].update(held_gpus(record))
        if is_asleep(record):
            for index in occupied_gpus(record):
                residues[record.node_id][index] += costs_of(record, costs).residual_bytes
    return [
        NodeGpus(
            node_id=node.record.node_id,
            healthy=frozenset(gpu.index for gpu in node.record.gpus if gpu.healthy),
            used=frozenset(used[node.record.node_id]),
            live=node.liveness is Liveness.LIVE,
            draining=bool(node.emptying),
            unhealthy=sum(not gpu.healthy for gpu in node.record.gpus),
            residues={
                gpu.index: kept / gpu.memory_bytes if gpu.memory_bytes else 0.0
                for gpu in node.record.gpus
                if (kept := residues[node.record.node_id].get(gpu.index)) is not None
            },
        )
        for node in nodes
    ]


def costs_of(record: InstanceRecord, costs: Mapping[str, SleepCosts] | None) -> SleepCosts:
    """What an instance's sleep costs, by its model's spec now."""
    if costs and record.model in costs:
        return costs[record.model]
    return sleep_costs(cluster_pb2.ModelSpec.FromString(record.spec))


def costs_by_model(models: Iterable[ModelRecord]) -> Mapping[str, SleepCosts]:
    """Model → what its instances' sleep costs."""
    return {model.name: sleep_costs(model.parsed_spec()) for model in models if not model.deleted}


def is_current(model: ModelRecord, spec_version: int) -> bool:
    """Whether a worker of this version of the model's spec needs no replacement."""
    return spec_version == model.rollout_version


@dataclass(slots=True)
class Fleet:
    """One model's instances; each is in exactly one list."""

    fresh: list[InstanceRecord] = field(default_factory=list)
    """Of a version that may stay, where they may stay."""
    outdated: list[InstanceRecord] = field(default_factory=list)
    """Of another version of the spec."""
    sick: list[InstanceRecord] = field(default_factory=list)
    """On a GPU that is not healthy, or not there any more: to move elsewhere, where there is room."""
    draining: list[InstanceRecord] = field(default_factory=list)
    """To go: on a node that is being drained or is leaving, or drained itself."""
    lost: list[InstanceRecord] = field(default_factory=list)
    """On a dead node."""
    asleep: list[InstanceRecord] = field(default_factory=list)
    """To sleep, wherever they are: none of those that are wanted."""
    stopping: list[InstanceRecord] = field(default_factory=list)
    """Wanted no more, on a node that can still say so."""


class Work:
    """The view, with what this pass has changed so far."""

    def __init__(self, view: ClusterView, new_id: Callable[[str], str]) -> None:
        self.view = view
        self.nodes: Mapping[str, NodeView] = {node.record.node_id: node for node in view.nodes}
        self._new_id = new_id
        self._by_model: dict[str, dict[str, InstanceRecord]] = defaultdict(dict)
        self._fleets: dict[str, tuple[int, Fleet]] = {}
        """Of models of which nothing has changed since, with the version that counted as current."""
        self._gpus: dict[str, Mapping[int, GpuRecord]] = {}
        self._puts: dict[str, InstanceRecord] = {}
        self._acts: list[Act] = []
        self._reasons: dict[str, list[str]] = defaultdict(list)
        self._models = {model.name: model for model in view.models}
        self._moved: dict[str, ModelRecord] = {}
        self._due_s: float | None = None
        self._ids = {record.instance_id for record in (*view.instances, *view.unknown)}
        self.costs = costs_by_model(view.models)
        """What sleep costs, by model."""
        for record in view.instances:
            self._by_model[record.model][record.instance_id] = record

    def live_models(self) -> list[ModelRecord]:
        """The models that are to be served, by name."""
        return [self._models[name] for name in sorted(self._models) if not self._models[name].deleted]

    def instances(self, model: str) -> list[InstanceRecord]:
        """A model's instances as they stand now, by id."""
        return [self._by_model[model][key] for key in sorted(self._by_model[model])]

    def fleet(self, model: ModelRecord) -> Fleet:
        """A model's instances as they stand now. Read-only; made once until the model changes."""
        version, known = self._fleets.get(model.name, (0, None))
        if known is None or version != model.rollout_version:
            known = self._sorted(model)
            self._fleets[model.name] = model.rollout_version, known
        return known

    def _sorted(self, model: ModelRecord) -> Fleet:
        fleet = Fleet()
        for record in self.instances(model.name):
            node = self.nodes.get(record.node_id)
            dead = node is None or node.liveness is Liveness.DEAD
            if is_stopping(record):
                if not dead:
                    fleet.stopping.append(record)
            elif is_to_sleep(record):
                fleet.asleep.append(record)
            elif dead:
                fleet.lost.append(record)
            elif self.emptying(record):
                fleet.draining.append(record)
            elif self.illness(record):
                fleet.sick.append(record)
            elif not is_current(model, record.spec_version):
                fleet.outdated.append(record)
            else:
                fleet.fresh.append(record)
        return fleet

    def emptying(self, record: InstanceRecord) -> str:
        """Why the instance must go although it could serve on; empty: it may stay."""
        node = self.nodes.get(record.node_id)
        if node is not None and node.emptying:
            return f"{record.node_id} {node.emptying}"
        return "an operator drains it" if record.draining else ""

    def illness(self, record: InstanceRecord) -> str:
        """Why the instance's GPUs must not be used; empty while they are there and healthy."""
        node = self.nodes.get(record.node_id)
        if node is None:
            return ""
        gpus = self._gpus.get(record.node_id)
        if gpus is None:
            gpus = self._gpus[record.node_id] = {gpu.index: gpu for gpu in node.record.gpus}
        found = []
        for index in record.gpu_indexes:
            if index not in gpus:
                found.append(f"GPU {index} of {record.node_id} is not there any more")
            elif not gpus[index].healthy:
                found.append(f"GPU {index} of {record.node_id} is not healthy ({gpus[index].reason})")
        return "; ".join(found)

    def liveness(self, node_id: str) -> Liveness:
        """How the node stands; one that is not on record is as good as dead."""
        node = self.nodes.get(node_id)
        return node.liveness if node else Liveness.DEAD

    def load(self, record: InstanceRecord) -> int:
        """Requests running and waiting on the instance, by its last report."""
        return self.view.load.get(record.instance_id, 0)

    def capacity(self) -> list[NodeGpus]:
        """Every node's GPUs, and which of them are held."""
        known = [record for records in self._by_model.values() for record in records.values()]
        return node_gpus(self.view.nodes, (*known, *self.view.unknown), self.costs)

    def budget_left(self) -> int | None:
        """GPUs that may still be taken, below 0 where more are held than may be; None: all that are there."""
        if not self.view.gpu_budget:
            return None
        known = [record for records in self._by_model.values() for record in records.values()]
        held = {
            (record.node_id, index)
            for record in (*known, *self.view.unknown)
            if self.liveness(record.node_id) is not Liveness.DEAD
            for index in occupied_gpus(record)
        }
        return self.view.gpu_budget - len(held)

    def used_gpus(self) -> set[tuple[str, int]]:
        """(node, GPU index) of every GPU that instances on record hold."""
        return {
            (record.node_id, index)
            for records in self._by_model.values()
            for record in records.values()
            for index in held_gpus(record)
        }

    def fresh_id(self, model: str) -> str:
        """An instance id that nobody has."""
        while (made := self._new_id(model)) in self._ids:
            pass
        self._ids.add(made)
        return made

    def health(self, record: InstanceRecord) -> Health:
        """How the instance has served since it became ready."""
        return self.view.health.get(record.instance_id, Health()) if is_ready(record) else Health()

    def look_again(self, in_s: float) -> None:
        """Says that time alone changes this plan."""
        self._due_s = in_s if self._due_s is None else min(self._due_s, in_s)

    def put_model(self, model: ModelRecord, act: Act) -> None:
        """Writes a model, with the explanation."""
        self._models[model.name] = self._moved[model.name] = model
        self._fleets.pop(model.name, None)
        self._acts.append(act)

    def put(self, record: InstanceRecord, act: Act) -> None:
        """Writes a record, with the explanation."""
        self._by_model[record.model][record.instance_id] = record
        self._fleets.pop(record.model, None)
        self._puts[record.instance_id] = record
        self._acts.append(act)

    def stop(
        self,
        record: InstanceRecord,
        reason: str,
        numbers: Mapping[str, float],
        *,
        action: str = "stop",
        follows: str = "",
        alternatives: tuple[Alternative, ...] = (),
    ) -> None:
        """Makes an instance wanted no more. follows, alternatives: see Act."""
        of = record.model, record.instance_id, record.node_id
        act = Act(action, reason, *of, numbers, alternatives=alternatives, follows=follows)
        self.put(stopped_copy(record), act)

    def explain(self, model: str, reason: str) -> None:
        """Says what keeps a model from what it should have."""
        self._reasons[model].append(reason)

    def plan(self) -> Plan:
        """Everything that this pass wants written."""
        reasons = {model: "; ".join(texts) for model, texts in self._reasons.items()}
        moved = tuple(self._moved.values())
        return Plan(tuple(self._puts.values()), tuple(self._acts), reasons, moved, self._due_s)


def stopped_copy(record: InstanceRecord) -> InstanceRecord:
    """The record with STOPPED desired, one generation on."""
    return dataclasses.replace(
        record, desired=control_pb2.DESIRED_STATE_STOPPED, generation=record.generation + 1
    )
