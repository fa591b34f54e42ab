"""Makes acts decisions on record: with an id, what they rest on, and what they follow from."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from chiron.policy.decisions import ModelAssessment
from chiron.policy.placement import NodeGpus
from chiron.store import DecisionRecord, InstanceRecord, Outcome, Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.bounds import is_autoscaled
from services.global_controller.decisions.causes import Causes
from services.global_controller.decisions.inputs import decision_inputs
from services.global_controller.decisions.outcomes import kind_of
from services.global_controller.decisions.traces import DecisionTraces
from services.global_controller.fleet import node_gpus
from services.global_controller.fleet_snapshot import Told
from services.global_controller.registry import Registry
from services.global_controller.view import Act

_PARENTS_KEPT = 1000
_log = logging.getLogger(__name__)


class _Around(NamedTuple):
    """What the decisions of one commit rest on, whichever model they are about."""

    statuses: Mapping[str, cluster_pb2.InstanceStatus]
    routers: Sequence[Told]
    nodes: Sequence[NodeGpus]
    ages_s: Sequence[float]


class Recorder:
    """Explains the acts of one commit after the other."""

    def __init__(self, registry: Registry, traces: DecisionTraces) -> None:
        """What decisions rest on is looked up in the registry; `term` is to be set before the first."""
        self.term = 0
        self._registry = registry
        self._traces = traces
        self._parents: OrderedDict[str, str] = OrderedDict()
        """Decision id → traceparent, of the newest that have one."""
        self._made = 0
        self._causes = Causes()
        self._assessed: dict[str, ModelAssessment] = {}

    def note(self, decisions: Iterable[DecisionRecord]) -> None:
        """These are on record, the oldest first: later ones may follow from them."""
        for decision in decisions:
            self._causes.note(decision)
            self._remember(decision)

    def written(self, decisions: Sequence[DecisionRecord]) -> None:
        """These are in the store now: so much of their traces is over."""
        self._traces.written(decisions)

    def assessed(self, assessments: Iterable[ModelAssessment]) -> None:
        """What the autoscaler has just found; decisions rest on it until it says otherwise."""
        self._assessed = {one.model: one for one in assessments}

    def explain(
        self, acts: Sequence[Act], snapshot: Snapshot, puts: Iterable[object] = ()
    ) -> tuple[DecisionRecord, ...]:
        """The acts of one commit as decisions.

        Args:
            acts: what is done.
            snapshot: the state before.
            puts: what is written of it.
        """
        # Of a commit that failed.
        self._traces.give_up()
        written = {record.instance_id: record for record in puts if isinstance(record, InstanceRecord)}
        known: dict[str, bytes] = {}
        ages: dict[str, float] = {}
        decisions = []
        around: _Around | None = None
        for act in acts:
            if act.model and act.model not in known:
                around = around or self._around(snapshot)
                inputs = self._inputs(act.model, snapshot, around)
                ages[act.model] = inputs.oldest_report_s
                known[act.model] = inputs.SerializeToString(deterministic=True)
            record = written.get(act.instance_id)
            decision = self._decision(act, record, snapshot, known.get(act.model, b""))
            cause = self._parents.get(decision.cause, "")
            parent = self._traces.begin(decision, ages.get(act.model, 0.0), cause)
            decision = dataclasses.replace(decision, trace_parent=parent) if parent else decision
            # Acts of the same commit may follow from it.
            self._causes.note(decision)
            self._remember(decision)
            decisions.append(decision)
        return tuple(decisions)

    def _decision(
        self, act: Act, record: InstanceRecord | None, snapshot: Snapshot, inputs: bytes
    ) -> DecisionRecord:
        self._made += 1
        _log.info("%s %s: %s", act.action, act.instance_id or act.model or act.node_id, act.reason)
        kind = kind_of(snapshot.instances.get(act.instance_id), record) if record is not None else None
        return DecisionRecord(
            decision_id=f"{self.term}-{self._made}",
            time_unix_ms=time.time_ns() // 1_000_000,
            term=self.term,
            action=act.action,
            model=act.model,
            instance_id=act.instance_id,
            node_id=act.node_id,
            reason=act.reason,
            numbers=act.numbers,
            inputs=inputs,
            alternatives=act.alternatives,
            cause=self._causes.of(act),
            generation=record.generation if record is not None else 0,
            outcome=None if kind is None else Outcome(kind),
        )

    def _remember(self, decision: DecisionRecord) -> None:
        if decision.trace_parent:
            self._parents[decision.decision_id] = decision.trace_parent
            if len(self._parents) > _PARENTS_KEPT:
                self._parents.popitem(last=False)

    def _around(self, snapshot: Snapshot) -> _Around:
        registry = self._registry
        views = [registry.view(node) for node in snapshot.nodes.values()]
        unknown = [one for one in registry.unknown() if one.instance_id not in snapshot.instances]
        return _Around(
            registry.statuses(),
            [Told(link.report, registry.age_s(link)) for link in registry.routers.values()],
            node_gpus(views, (*snapshot.instances.values(), *unknown)),
            [registry.age_s(link) for link in registry.agents.values() if link.connected],
        )

    def _inputs(self, model: str, snapshot: Snapshot, around: _Around) -> cluster_pb2.DecisionInputs:
        instances = snapshot.instances.values()
        record = snapshot.models.get(model)
        # What the autoscaler found when it still scaled the model is not so any more.
        assessed = self._assessed.get(model) if record is not None and is_autoscaled(record) else None
        return decision_inputs(model, instances, *around, assessed)
