"""What the agent adds to the trace of the decision that it carries out; nothing while tracing is off."""

from __future__ import annotations

import time

from chiron.telemetry.attributes import INSTANCE_ID
from chiron.telemetry.decisions import NODE, record_span
from services.local_agent.desired import Want


def received(want: Want, before: Want | None, node_id: str) -> None:
    """The controller's command has come; `before` is what it wanted until now."""
    if want.trace_parent and (before is None or want.generation > before.generation):
        now_ns = time.time_ns()
        record_span("chiron.agent.receive", want.trace_parent, now_ns, now_ns, _about(want, node_id))


def started(want: Want, node_id: str, began_s: float) -> None:
    """The worker's process has been started for the first time; the agent began at `began_s`, monotonic."""
    if want.trace_parent:
        now_ns = time.time_ns()
        began_ns = now_ns - round((time.monotonic() - began_s) * 1e9)
        record_span("chiron.agent.start", want.trace_parent, began_ns, now_ns, _about(want, node_id))


def _about(want: Want, node_id: str) -> dict[str, str | float | bool]:
    return {INSTANCE_ID: want.instance_id, NODE: node_id}
