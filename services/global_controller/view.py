"""What the reconciler sees, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from chiron.policy.decisions import Alternative
from chiron.store import InstanceRecord, ModelRecord, NodeRecord


class Liveness(Enum):
    """How a node stands with this controller."""

    LIVE = auto()
    """Connected, and it has reported what runs on it."""
    JOINING = auto()
    """Connected, but it has not reported since."""
    SILENT = auto()
    """Not connected, for less than the liveness timeout."""
    UNHEARD = auto()
    """On record, but not heard from since this controller started."""
    DEAD = auto()
    """Silent for longer than the liveness timeout."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node with its liveness."""

    record: NodeRecord
    liveness: Liveness
    silent_s: float = 0.0
    """Time since it was last heard, in seconds."""
    leaving: bool = False
    """Its agent is stopping."""

    @property
    def emptying(self) -> str:
        """Why what runs there must move elsewhere; empty: it may stay."""
        if self.leaving:
            return "is leaving, its agent stops"
        return "is being drained" if self.record.draining else ""


@dataclass(frozen=True, slots=True)
class Health:
    """How an instance has served since it became ready. Freshness: the last report of its node."""

    ready_s: float = 0.0
    """Time for which its present worker has been ready, in seconds; 0: it is not."""
    served: int = 0
    """Requests that its present worker has answered whole."""
    failed: int = 0
    """Requests that failed there through the engine's fault."""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A snapshot of everything that placement decisions rest on."""

    models: tuple[ModelRecord, ...] = ()
    """Tombstones included. Freshness: the store's newest revision."""
    instances: tuple[InstanceRecord, ...] = ()
    """Likewise; what was observed is as old as the node's last report."""
    nodes: tuple[NodeView, ...] = ()
    unknown: tuple[InstanceRecord, ...] = ()
    """Workers that nodes report and the store does not know, as old as the last report."""
    load: Mapping[str, int] = field(default_factory=dict)
    """Requests running and waiting, by instance id; as old as the last report."""
    health: Mapping[str, Health] = field(default_factory=dict)
    """By instance id; one that is not there has just become ready or is not."""
    hold_s: float = 0.0
    """Time for which a new version's instance must stay ready, in seconds, where the model says nothing."""
    gpu_budget: int = 0
    """Most GPUs that instances may hold; 0: no limit."""
    sleep_host_bytes: Mapping[str, int] = field(default_factory=dict)
    """Host memory that sleepers may take, by node; as old as the last report, and 0 without one."""
    kept_host_bytes: Mapping[str, int] = field(default_factory=dict)
    """Host memory that each sleeper was measured to take, by instance id; likewise."""
    settling: bool = False
    """Not every node has had the time to join this controller: nothing is stopped or replaced."""


@dataclass(frozen=True, slots=True)
class Act:
    """One change with its explanation; becomes a Decision."""

    action: str
    reason: str
    model: str = ""
    instance_id: str = ""
    node_id: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    """What else was weighed."""
    cause: str = ""
    """Id of the decision that it follows from, where that is known already."""
    follows: str = ""
    """Else what that decision is about; see decisions.causes. Empty: the act's model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the reconciler wants written."""

    puts: tuple[InstanceRecord, ...] = ()
    acts: tuple[Act, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """For each model that has not what it should have: what stands in the way."""
    models: tuple[ModelRecord, ...] = ()
    """Models whose roll has come further."""
    due_s: float | None = None
    """Time after which the same view gives another plan, in seconds; None: time alone changes nothing."""
