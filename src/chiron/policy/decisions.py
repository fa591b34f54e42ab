"""What autoscalers decide: with the reason, the numbers it rests on, and what else was weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from chiron.policy.words import Role

NO_NUMBERS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Alternative:
    """Something that was weighed and not done."""

    action: str
    """What else could have been done, e.g. `start one fewer`."""
    why_not: str
    """One clause, with the figures that decided."""
    numbers: Mapping[str, float] = field(default_factory=lambda: NO_NUMBERS)

    def __post_init__(self) -> None:
        """Keeps a copy of the numbers that nobody else can change."""
        object.__setattr__(self, "numbers", MappingProxyType(dict(self.numbers)))


@dataclass(frozen=True, slots=True)
class Limits:
    """A local autoscaler's decision: what the engine should run with from now on."""

    batch_size: int
    """In requests, 1 to the sample's ceiling."""
    step_token_budget: int
    """In tokens, 1 to the sample's ceiling."""
    safe_batch_size: int
    """Largest batch size predicted to keep the ITL SLO; reported to the global autoscaler."""
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """Place `count` new instances."""

    model: str
    role: Role
    count: int
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Retire:
    """Drain one instance and free its GPUs."""

    model: str
    instance_id: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    hand_over: bool = False
    """Its running streams go on elsewhere, as `chiron.policy.hand_over` allows; otherwise they end there."""


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Give one instance another role; nothing on it is aborted."""

    model: str
    instance_id: str
    role: Role
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake a sleeping instance, with this role."""

    model: str
    instance_id: str
    role: Role
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Sleep:
    """Drain one instance and put it to sleep."""

    model: str
    instance_id: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    hand_over: bool = False
    """As of `Retire`."""


Action = Start | Retire | ChangeRole | Wake | Sleep


@dataclass(frozen=True, slots=True)
class GroupEstimate:
    """When a request group will be done with present capacity. Times are seconds from the tick."""

    deadline_in_s: float
    requests: int
    done_in_s: float
    """inf: never."""


@dataclass(frozen=True, slots=True)
class ModelAssessment:
    """What one tick found of one model, whether or not anything follows from it."""

    model: str
    numbers: Mapping[str, float]
    """At least ibp, bbp, theta."""
    reason: str
    """Why this much and no more: one sentence."""
    alternatives: tuple[Alternative, ...] = ()
    """What would have been done had the figures been others, or had there been GPUs."""
    groups: tuple[GroupEstimate, ...] = ()
    """The request groups that are due first; none where nothing waits or nobody has estimated it."""


@dataclass(frozen=True, slots=True)
class FleetDecision:
    """A global autoscaler's decision for one tick."""

    actions: tuple[Action, ...]
    """In the order in which they should be carried out: the cheapest first."""
    assessments: tuple[ModelAssessment, ...]
