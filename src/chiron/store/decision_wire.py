"""Decisions as messages: as they are stored, and as operators see them."""

from __future__ import annotations

from chiron.internal.v1 import state_pb2
from chiron.policy.decisions import Alternative
from chiron.store.decisions import DecisionRecord, Need, Outcome
from chiron.v1 import cluster_pb2


def stored_decision(record: DecisionRecord) -> state_pb2.StoredDecision:
    """A decision without its outcome, which lies elsewhere."""
    return state_pb2.StoredDecision(
        decision_id=record.decision_id,
        time_unix_ms=record.time_unix_ms,
        term=record.term,
        action=record.action,
        model=record.model,
        instance_id=record.instance_id,
        node_id=record.node_id,
        reason=record.reason,
        numbers=dict(record.numbers),
        inputs=_inputs(record),
        alternatives=_alternatives(record),
        cause=record.cause,
        trace_parent=record.trace_parent,
        generation=record.generation,
    )


def read_decision(stored: state_pb2.StoredDecision, outcome: Outcome | None) -> DecisionRecord:
    """The inverse, with the outcome."""
    return DecisionRecord(
        decision_id=stored.decision_id,
        time_unix_ms=stored.time_unix_ms,
        term=stored.term,
        action=stored.action,
        model=stored.model,
        instance_id=stored.instance_id,
        node_id=stored.node_id,
        reason=stored.reason,
        numbers=dict(stored.numbers),
        inputs=stored.inputs.SerializeToString(deterministic=True) if stored.HasField("inputs") else b"",
        alternatives=tuple(
            Alternative(one.action, one.why_not, dict(one.numbers)) for one in stored.alternatives
        ),
        cause=stored.cause,
        trace_parent=stored.trace_parent,
        generation=stored.generation,
        outcome=outcome,
    )


def shown_decision(record: DecisionRecord) -> cluster_pb2.Decision:
    """A decision as operators see it."""
    shown = cluster_pb2.Decision(
        decision_id=record.decision_id,
        term=record.term,
        action=record.action,
        model=record.model,
        instance_id=record.instance_id,
        node_id=record.node_id,
        reason=record.reason,
        numbers=dict(record.numbers),
        inputs=_inputs(record),
        alternatives=_alternatives(record),
        cause=record.cause,
        trace_id=record.trace_id,
        outcome=None if record.outcome is None else outcome_message(record.outcome),
    )
    shown.time.FromMilliseconds(record.time_unix_ms)
    return shown


def outcome_message(outcome: Outcome) -> cluster_pb2.DecisionOutcome:
    """What came of a decision, as a message."""
    need = outcome.need
    return cluster_pb2.DecisionOutcome(
        kind=outcome.kind,
        state=outcome.state,
        reason=outcome.reason,
        milestones=[
            cluster_pb2.Milestone(name=name, after_s=after_s) for name, after_s in outcome.milestones
        ],
        reversed_by=outcome.reversed_by,
        need=None
        if need is None
        else cluster_pb2.DecisionNeed(
            needed=need.needed,
            peak_use=need.peak_use,
            peak_without=need.peak_without,
            limit=need.limit,
            window_s=need.window_s,
        ),
    )


def read_outcome(message: cluster_pb2.DecisionOutcome) -> Outcome:
    """The inverse."""
    need = message.need
    return Outcome(
        kind=message.kind,
        state=message.state,
        reason=message.reason,
        milestones=tuple((one.name, one.after_s) for one in message.milestones),
        reversed_by=message.reversed_by,
        need=Need(need.needed, need.peak_use, need.peak_without, need.limit, need.window_s)
        if message.HasField("need")
        else None,
    )


def _inputs(record: DecisionRecord) -> cluster_pb2.DecisionInputs | None:
    return cluster_pb2.DecisionInputs.FromString(record.inputs) if record.inputs else None


def _alternatives(record: DecisionRecord) -> list[cluster_pb2.DecisionAlternative]:
    return [
        cluster_pb2.DecisionAlternative(action=one.action, why_not=one.why_not, numbers=dict(one.numbers))
        for one in record.alternatives
    ]
