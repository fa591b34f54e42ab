"""One trace for each decision: from the signal that led to it over the write to all that came of it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import StatusCode

from chiron.store import DecisionRecord, Outcome
from chiron.telemetry import attributes as names
from chiron.telemetry import decisions as told
from chiron.telemetry import tracer
from chiron.v1 import cluster_pb2
from services.global_controller.decisions.follower import MOST_OPEN


class DecisionTraces:
    """Root spans of the commit that is under way, and children for what follows from those that are over."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[trace.Span, int]] = {}
        self._written_ns: dict[str, int] = {}

    def begin(self, decision: DecisionRecord, signal_age_s: float, cause_parent: str = "") -> str:
        """Opens the root span of a decision that is about to be written; "": it has no trace.

        Args:
            decision: as it will be on record.
            signal_age_s: age of the oldest report that it rests on.
            cause_parent: traceparent of the decision that it follows from.
        """
        now_ns = time.time_ns()
        signal_ns = now_ns - round(signal_age_s * 1e9)
        span = tracer().start_span("chiron.decision", Context(), start_time=signal_ns)
        if not span.is_recording():
            return ""
        span.set_attributes(_about(decision) | {told.REASON: decision.reason})
        span.set_attributes({f"{told.NUMBER}{name}": value for name, value in decision.numbers.items()})
        if cause_parent:
            span.add_link(told.span_context(cause_parent), {told.DECISION_ID: decision.cause})
        for one in decision.alternatives:
            span.add_event("weighed", {"action": one.action, "why_not": one.why_not}, timestamp=now_ns)
        parent = told.trace_parent_of(span)
        told.record_span("chiron.decision.signal", parent, signal_ns, now_ns, _about(decision))
        self._begun[decision.decision_id] = (span, now_ns)
        return parent

    def written(self, decisions: Iterable[DecisionRecord]) -> None:
        """These are in the store: their root spans end."""
        for decision in decisions:
            span, decided_ns = self._begun.pop(decision.decision_id, (None, 0))
            if span is not None:
                now_ns = time.time_ns()
                parent = decision.trace_parent
                told.record_span("chiron.decision.write", parent, decided_ns, now_ns, _about(decision))
                span.end(now_ns)
                if decision.outcome is not None and decision.outcome.is_open:
                    self._written_ns[decision.decision_id] = now_ns
                    if len(self._written_ns) > MOST_OPEN:
                        del self._written_ns[next(iter(self._written_ns))]

    def give_up(self) -> None:
        """What was begun was not written."""
        for span, _ in self._begun.values():
            span.set_status(StatusCode.ERROR, "it was not written")
            span.end()
        self._begun.clear()

    def progress(self, decision: DecisionRecord, outcome: Outcome, told_before: int) -> None:
        """Tells of an outcome's milestones but the first `told_before`, and of its end."""
        if not decision.trace_parent:
            return
        # Milestones count from the write, which took its time; of an earlier reign's only the record tells.
        made_ns = self._written_ns.get(decision.decision_id, decision.time_unix_ms * 1_000_000)
        about = _about(decision)
        for index in range(told_before, len(outcome.milestones)):
            name, after_s = outcome.milestones[index]
            before_s = outcome.milestones[index - 1][1] if index else 0.0
            span_name = f"chiron.decision.{name}"
            start_ns, end_ns = (made_ns + round(at * 1e9) for at in (before_s, after_s))
            told.record_span(span_name, decision.trace_parent, start_ns, end_ns, about)
        if not outcome.is_open:
            self._written_ns.pop(decision.decision_id, None)
            more: dict[str, str | float | bool] = {
                "chiron.outcome.state": cluster_pb2.OutcomeState.Name(outcome.state)
                .removeprefix("OUTCOME_STATE_")
                .lower()
            }
            if outcome.reason:
                more["chiron.outcome.reason"] = outcome.reason
            if outcome.need is not None:
                more["chiron.outcome.needed"] = outcome.need.needed
            end_ns = time.time_ns()
            told.record_span("chiron.decision.outcome", decision.trace_parent, made_ns, end_ns, about | more)


def _about(decision: DecisionRecord) -> dict[str, str | float | bool]:
    about = {
        told.DECISION_ID: decision.decision_id,
        told.ACTION: decision.action,
        told.MODEL: decision.model,
        names.INSTANCE_ID: decision.instance_id,
        told.NODE: decision.node_id,
    }
    return {name: value for name, value in about.items() if value}
