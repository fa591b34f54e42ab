"""The log's values: decisions with what they rest on, and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from chiron.policy.decisions import NO_NUMBERS, Alternative
from chiron.v1 import cluster_pb2


@dataclass(frozen=True, slots=True)
class Need:
    """Whether capacity was needed; see DecisionNeed."""

    needed: bool
    peak_use: float
    peak_without: float
    limit: float
    window_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a decision; see DecisionOutcome."""

    kind: cluster_pb2.OutcomeKind.ValueType
    state: cluster_pb2.OutcomeState.ValueType = cluster_pb2.OUTCOME_STATE_OPEN
    reason: str = ""
    milestones: tuple[tuple[str, float], ...] = ()
    """(name, seconds since the decision), in the order in which they were reached."""
    reversed_by: str = ""
    need: Need | None = None

    @property
    def is_open(self) -> bool:
        """Whether more may come of it."""
        return self.state == cluster_pb2.OUTCOME_STATE_OPEN

    def after_s(self, name: str) -> float | None:
        """When a milestone was reached, in seconds since the decision; None: it was not."""
        return next((after_s for known, after_s in self.milestones if known == name), None)


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One explained act of the controller."""

    decision_id: str
    time_unix_ms: int
    """Wall clock, for people; a later leader computes the times of the outcome from it."""
    term: int
    action: str
    model: str
    instance_id: str
    node_id: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=lambda: NO_NUMBERS)
    inputs: bytes = b""
    """The serialised DecisionInputs; empty: none."""
    alternatives: tuple[Alternative, ...] = ()
    cause: str = ""
    """Id of the decision that it follows from; empty: none."""
    trace_parent: str = ""
    """W3C traceparent of its root span; empty: tracing was off."""
    generation: int = 0
    """The one that it gave the instance; 0: it gave none."""
    outcome: Outcome | None = None
    """None: nothing is followed up."""

    def __post_init__(self) -> None:
        """Keeps a copy of the numbers that nobody else can change."""
        object.__setattr__(self, "numbers", MappingProxyType(dict(self.numbers)))

    @property
    def trace_id(self) -> str:
        """OpenTelemetry's id of its trace, in hex; empty: it has none."""
        return self.trace_parent.split("-")[1] if self.trace_parent else ""
