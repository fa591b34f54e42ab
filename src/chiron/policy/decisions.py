"""What autoscalers decide. Every decision carries its reason and the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from chiron.policy.words import Role


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


@dataclass(frozen=True, slots=True)
class Retire:
    """Drain one instance and free its GPUs."""

    model: str
    instance_id: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChangeRole:
    """Give one instance another role; nothing on it is aborted."""

    model: str
    instance_id: str
    role: Role
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake a sleeping instance, with this role."""

    model: str
    instance_id: str
    role: Role
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Drain one instance and put it to sleep."""

    model: str
    instance_id: str
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


Action = Start | Retire | ChangeRole | Wake | Sleep


@dataclass(frozen=True, slots=True)
class ModelAssessment:
    """What one tick found of one model, whether or not anything follows from it."""

    model: str
    numbers: Mapping[str, float]
    """At least ibp, bbp, theta."""
    reason: str
    """Why this much and no more: one sentence."""


@dataclass(frozen=True, slots=True)
class FleetDecision:
    """A global autoscaler's decision for one tick."""

    actions: tuple[Action, ...]
    """In the order in which they should be carried out: the cheapest first."""
    assessments: tuple[ModelAssessment, ...]
