"""Policies by name: what scales the fleet, what places requests, what sets each instance's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from chiron.config import ConfigError
from chiron.policy.custom import PolicyError
from chiron.policy.dispatch import Dispatcher, UnknownDispatcherError, load_dispatcher
from chiron.policy.fleet import ChironSettings, GlobalAutoscaler, UnknownAutoscalerError
from chiron.policy.local import LocalAutoscaler, UnknownLocalAutoscalerError, load_local
from chiron.sim.autoscalers import BASELINES, Beforehand, make_autoscaler, parameter_names, settings_for
from chiron.sim.baselines.least_requests import LeastRequestsDispatcher
from chiron.sim.baselines.llumnix import FreenessDispatcher
from chiron.sim.baselines.migration import FreenessPairing, MigrationPlanner, MigrationThresholds
from chiron.sim.parameters import NO_PARAMETERS, ParameterError, Parameters, adjusted, settable
from chiron.sim.settings import InvalidSettingError, SimModel, SimSettings

STATIC = "static"
"""The name that stands for no local autoscaler: limits stay as they start."""
_DISPATCHERS: Mapping[str, Callable[[], Dispatcher]] = {
    "least-requests": LeastRequestsDispatcher,
    "llumnix": FreenessDispatcher,
}
_NO_LIMIT = 1_000_000
T = TypeVar("T")


class PartError(ConfigError):
    """A part of a policy that cannot be loaded.

    Attributes:
        part: autoscaler, dispatcher or local.
    """

    def __init__(self, part: str, problem: object) -> None:
        super().__init__(str(problem))
        self.part = part


@dataclass(frozen=True, slots=True)
class StaticLimits:
    """Limits with which a policy's instances start, and which they keep unless it has a local autoscaler.

    Raises ValueError by field.
    """

    batch_size: int = 0
    """In requests; 0: the model's `initial_batch_size`."""
    step_token_budget: int = 0
    """In tokens; 0: the model's `initial_step_token_budget`."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "step_token_budget"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must not be negative, got {getattr(self, name)}")

    def of(self, model: SimModel) -> SimModel:
        """The model with these limits. Raises ParameterError for one that it does not allow."""
        most = model.max_step_token_budget
        if self.step_token_budget > most:
            raise ParameterError(
                "step_token_budget",
                f"'step_token_budget' must not exceed max_step_token_budget = {most} of model {model.name!r}",
            )
        try:
            return dataclasses.replace(
                model,
                initial_batch_size=self.batch_size or model.initial_batch_size,
                initial_step_token_budget=self.step_token_budget or model.initial_step_token_budget,
            )
        except InvalidSettingError as error:
            raise ParameterError("batch_size", f"'batch_size' of model {model.name!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class PolicyParts:
    """The names of a policy's parts."""

    autoscaler: str
    dispatcher: str
    local: str
    pinned: bool = False
    """Requests wait at the instance that got them, not in one queue at the router."""
    shared_queue: bool = False
    """Both classes wait at the router in one queue, first come first served."""
    preemption: bool = True
    """Batch requests give way to interactive ones, in queues and in batches."""
    migration: bool = False
    """Running requests move between instances, as Llumnix plans it."""
    priorities: bool = False
    """Engines take interactive requests first; batch requests that run keep their slots."""
    about: str = ""
    parameters: Parameters = NO_PARAMETERS
    """What its autoscaler, and the limits with which its instances start, are set to."""


def _pinning(autoscaler: str, about: str) -> PolicyParts:
    """Replicas behind a load balancer: each has its own queue, and no class goes before another."""
    return PolicyParts(autoscaler, "least-requests", STATIC, pinned=True, preemption=False, about=about)


_NAMED: Mapping[str, PolicyParts] = {
    "chiron": PolicyParts("chiron", "least-expected-wait", "model", about="both autoscalers of Chiron"),
    "chiron-static": PolicyParts(
        "chiron", "least-expected-wait", STATIC, about="its global autoscaler alone, static batch size"
    ),
    "chiron-paper": PolicyParts(
        "chiron-paper", "least-expected-wait", "reactive", about="the rules of the paper"
    ),
    "llumnix": PolicyParts(
        "llumnix",
        "llumnix",
        STATIC,
        pinned=True,
        preemption=False,
        about="freeness, static batch size, all requests alike, migration off",
    ),
    "llumnix-migration": PolicyParts(
        "llumnix",
        "llumnix",
        STATIC,
        pinned=True,
        preemption=False,
        migration=True,
        about="the same with migration on",
    ),
    "llumnix-priorities": PolicyParts(
        "llumnix",
        "llumnix",
        STATIC,
        pinned=True,
        preemption=False,
        migration=True,
        priorities=True,
        about="with migration, and interactive requests first in each engine",
    ),
    "llumnix-queue": PolicyParts(
        "llumnix",
        "llumnix",
        STATIC,
        shared_queue=True,
        preemption=False,
        about="the same with one queue for all that waits",
    ),
    "utilization": _pinning("utilization", "Kubernetes' autoscaler on slots and KV cache in use"),
    "queue-length": _pinning("queue-length", "KEDA on requests that wait"),
    "in-flight": _pinning("in-flight", "Ray Serve's autoscaling on ongoing requests"),
    "dynamo-like": _pinning("dynamo-like", "Dynamo's SLA planner: profiled engines and a forecast"),
    "fixed": PolicyParts("fixed", "least-expected-wait", STATIC, about="a fixed fleet, static batch size"),
    "fixed-model": PolicyParts(
        "fixed", "least-expected-wait", "model", about="a fixed fleet with Chiron's local autoscaler"
    ),
}
PREEMPTING = "+preempting"
"""Ends the name of a policy that has another one's scaling over Chiron's dispatch, queues and preemption."""


def _with_preempting(named: Mapping[str, PolicyParts]) -> Mapping[str, PolicyParts]:
    """These, and each scaling that has other queues than Chiron's once more over Chiron's."""
    found = dict(named)
    for name, parts in named.items():
        if parts.preemption:
            continue
        preempting = PolicyParts(
            parts.autoscaler,
            "least-expected-wait",
            parts.local,
            about="its scaling alone, over Chiron's dispatch, queues and preemption",
            parameters=parts.parameters,
        )
        # Policies that differ in dispatch and queues alone have one such variant between them.
        if preempting not in found.values():
            found[name + PREEMPTING] = preempting
    return found


POLICIES = _with_preempting(_NAMED)
"""By the names that scenarios and commands use."""
TOLD = ("oracle-feasible",)
"""References that are told the workload. Nothing here makes them (`chiron.sim.searched`)."""


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """A policy by name, and parts that take the place of its own."""

    name: str = "chiron"
    autoscaler: str | None = None
    """A name or module:Class; none: the policy's own."""
    dispatcher: str | None = None
    local: str | None = None
    """A name, module:Class, or "static": limits stay as they start."""
    preemption: bool | None = None
    """Whether batch requests give way to interactive ones; none: as the policy says."""
    settings: ChironSettings | None = None
    """Of its autoscaler, where that is one of Chiron's; none: the defaults."""
    parameters: Mapping[str, float] = field(default_factory=Parameters)
    """Settings of its autoscaler, `StaticLimits` and, if requests move, `MigrationThresholds`, by name, over
    the policy's own and over `settings`. Kept as `Parameters`. ParameterError for what is no number."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", Parameters(self.parameters))

    @property
    def label(self) -> str:
        """The name, the parts that differ, and the parameters."""
        given = {"autoscaler": self.autoscaler, "dispatcher": self.dispatcher, "local": self.local}
        changed = [f"{key}={name}" for key, name in given.items() if name is not None]
        if self.preemption is not None:
            changed.append(f"preemption={'on' if self.preemption else 'off'}")
        if self.parameters:
            changed.append(str(self.parameters))
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    @property
    def parts(self) -> PolicyParts:
        """The names of all parts. Raises ConfigError for an unknown policy."""
        if self.name not in POLICIES:
            known = ", ".join(sorted(POLICIES))
            told = "; it is told the workload: chiron sim compare runs it" if self.name in TOLD else ""
            raise ConfigError(f"unknown policy {self.name!r}; known are {known}{told}")
        parts = POLICIES[self.name]
        given = {
            key: getattr(self, key)
            for key in ("autoscaler", "dispatcher", "local", "preemption")
            if getattr(self, key) is not None
        }
        return dataclasses.replace(
            parts, **given, parameters=Parameters(self.parameters).over(parts.parameters)
        )

    def make(self, known: Beforehand | None = None) -> Policy:
        """New policy objects, which have seen nothing.

        known: what may be known before the run; None: nothing. Raises ConfigError for an unknown name,
        PartError for a part that cannot be loaded, ParameterError for a parameter that it does not take.
        """
        parts = self.parts
        autoscaler_name, known = parts.autoscaler, known or Beforehand()
        settings, limits, thresholds = self._set(parts)
        known = dataclasses.replace(known, models=tuple(limits.of(model) for model in known.models))
        autoscaler = _loaded(
            "autoscaler", autoscaler_name, BASELINES, lambda name: make_autoscaler(name, settings, known)
        )
        dispatcher = _loaded("dispatcher", parts.dispatcher, _DISPATCHERS, _dispatcher)
        local = None
        if parts.local != STATIC:
            _loaded("local", parts.local, {}, load_local)
            local = partial(load_local, parts.local)
        return Policy(self.label, autoscaler, dispatcher, local, parts, settings, limits, thresholds)

    def _set(self, parts: PolicyParts) -> tuple[object | None, StaticLimits, MigrationThresholds | None]:
        """What the parameters make of the settings of the policy's parts. Raises ParameterError."""
        limits, moves = settable(StaticLimits), settable(MigrationThresholds) if parts.migration else {}
        known = {*limits, *moves, *parameter_names(parts.autoscaler)}
        for name in parts.parameters:
            if name not in known:
                raise ParameterError(
                    name,
                    f"unknown parameter {name!r} of autoscaler {parts.autoscaler!r}; known are "
                    f"{', '.join(sorted(known))}",
                )

        def given(names: Iterable[str]) -> dict[str, float]:
            return {name: number for name, number in parts.parameters.items() if name in names}

        return (
            settings_for(parts.autoscaler, given(known - {*limits, *moves}), self.settings),
            adjusted(StaticLimits(), given(limits)),
            adjusted(MigrationThresholds(), given(moves)) if parts.migration else None,
        )


def _dispatcher(name: str) -> Dispatcher:
    return _DISPATCHERS[name]() if name in _DISPATCHERS else load_dispatcher(name)


def _loaded(part: str, name: str, own: Mapping[str, object], load: Callable[[str], T]) -> T:
    """A part by its name; `own` are those that only the simulator has. Raises PartError."""
    try:
        return load(name)
    except (UnknownAutoscalerError, UnknownDispatcherError, UnknownLocalAutoscalerError) as error:
        further = "" if ":" in name else f"; in the simulator also {', '.join(own or (STATIC,))}"
        raise PartError(part, f"{error}{further}") from error
    except PolicyError as error:
        raise PartError(part, error) from error


@dataclass(frozen=True, slots=True)
class Policy:
    """Policy objects for one run."""

    label: str
    autoscaler: GlobalAutoscaler
    dispatcher: Dispatcher
    local: Callable[[], LocalAutoscaler] | None
    """Makes one for each instance; None: limits stay as they start."""
    parts: PolicyParts
    autoscaler_settings: object | None
    """What the autoscaler is set to; None: it has no settings."""
    limits: StaticLimits
    migration_thresholds: MigrationThresholds | None = None
    """None: running requests stay where they are."""

    @property
    def migration(self) -> MigrationPlanner | None:
        """A planner of migrations; None: nothing moves."""
        thresholds = self.migration_thresholds
        return None if thresholds is None else FreenessPairing(thresholds)

    def settings(self, settings: SimSettings) -> SimSettings:
        """The settings under which it runs: a pinning policy has no queue but the engines'.

        A scenario may turn preemption off or share a queue for policies that would not. Raises ParameterError
        for limits that a model does not allow.
        """
        parts = self.parts
        queues = dataclasses.replace(
            settings.queues,
            preemption=settings.queues.preemption and parts.preemption,
            shared=settings.queues.shared or parts.shared_queue,
            priorities=settings.queues.priorities or parts.priorities,
        )
        return dataclasses.replace(
            settings,
            models=tuple(self.limits.of(model) for model in settings.models),
            queues=queues,
            engine_queue=_NO_LIMIT if parts.pinned else settings.engine_queue,
            discipline="fcfs" if parts.shared_queue else settings.discipline,
        )
