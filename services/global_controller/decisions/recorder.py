"""Makes acts decisions on record: with an id, what they rest on, and what they follow from."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Sequence

from chiron.policy.decisions import ModelAssessment
from chiron.store import DecisionRecord, InstanceRecord, Outcome, Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.decisions.causes import Causes
from services.global_controller.decisions.inputs import decision_inputs
from services.global_controller.decisions.outcomes import kind_of
from services.global_controller.fleet import node_gpus
from services.global_controller.fleet_snapshot import Told
from services.global_controller.registry import Registry
from services.global_controller.view import Act

_log = logging.getLogger(__name__)


class Recorder:
    """Explains the acts of one commit after the other."""

    def __init__(self, registry: Registry) -> None:
        """What decisions rest on is looked up in the registry; `term` is to be set before the first."""
        self.term = 0
        self._registry = registry
        self._made = 0
        self._causes = Causes()
        self._assessed: dict[str, ModelAssessment] = {}

    def note(self, decisions: Iterable[DecisionRecord]) -> None:
        """These are on record, the oldest first: later ones may follow from them."""
        for decision in decisions:
            self._causes.note(decision)

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
        written = {record.instance_id: record for record in puts if isinstance(record, InstanceRecord)}
        known: dict[str, bytes] = {}
        decisions = []
        for act in acts:
            if act.model and act.model not in known:
                known[act.model] = self._inputs(act.model, snapshot)
            record = written.get(act.instance_id)
            decision = self._decision(act, record, snapshot, known.get(act.model, b""))
            # Acts of the same commit may follow from it.
            self._causes.note(decision)
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

    def _inputs(self, model: str, snapshot: Snapshot) -> bytes:
        registry = self._registry
        views = [registry.view(node) for node in snapshot.nodes.values()]
        unknown = [one for one in registry.unknown() if one.instance_id not in snapshot.instances]
        inputs: cluster_pb2.DecisionInputs = decision_inputs(
            model,
            snapshot.instances.values(),
            registry.statuses(),
            [Told(link.report, registry.age_s(link)) for link in registry.routers.values()],
            node_gpus(views, (*snapshot.instances.values(), *unknown)),
            [registry.age_s(link) for link in registry.agents.values() if link.connected],
            self._assessed.get(model),
        )
        return inputs.SerializeToString(deterministic=True)


def with_outcome(decision: DecisionRecord, outcome: Outcome) -> DecisionRecord:
    """The decision with what has come of it since."""
    return dataclasses.replace(decision, outcome=outcome)
