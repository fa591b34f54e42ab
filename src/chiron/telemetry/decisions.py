"""Spans of a controller's decision, made by whoever takes part in carrying it out.

A decision's root span ends when the decision is on record; what follows from it is told afterwards, as
children with the times at which it happened, so that another controller can go on where the first one ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry import propagate, trace

from chiron.telemetry.tracing import tracer

PARENT_VARIABLE = "CHIRON_TRACEPARENT"
"""Environment variable that names a worker the decision that started it, as W3C traceparent."""
DECISION_ID = "chiron.decision.id"
ACTION = "chiron.decision.action"
MODEL = "chiron.decision.model"
NODE = "chiron.node.id"
REASON = "chiron.decision.reason"
NUMBER = "chiron.decision.number."
"""Followed by the name of each figure that the decision rests on."""
Attributes = Mapping[str, str | float | bool]


def record_span(
    name: str,
    trace_parent: str,
    start_ns: int,
    end_ns: int,
    attributes: Attributes,
    links: Sequence[trace.SpanContext] = (),
) -> None:
    """Tells of something that has happened because of a decision; nothing without a trace.

    Args:
        name: the span's.
        trace_parent: W3C traceparent of the decision's root span; empty: it has no trace.
        start_ns, end_ns: wall clock of this host, in nanoseconds.
        attributes: the span's.
        links: spans of other traces that this one is about.
    """
    if not trace_parent:
        return
    context = propagate.extract({"traceparent": trace_parent})
    linked = [trace.Link(one) for one in links if one.is_valid]
    span = tracer().start_span(name, context, attributes=attributes, links=linked, start_time=start_ns)
    span.end(max(start_ns, end_ns))


def trace_parent_of(span: trace.Span) -> str:
    """W3C traceparent of a span; empty while tracing is off."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    return carrier.get("traceparent", "")


def span_context(trace_parent: str) -> trace.SpanContext:
    """What a traceparent names, for a link; an invalid one for an empty or unreadable text."""
    context = propagate.extract({"traceparent": trace_parent})
    return trace.get_current_span(context).get_span_context()
