"""Policies by name: what scales the fleet, what places requests, what sets each instance's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from chiron.config import ConfigError
from chiron.policy.custom import PolicyError
from chiron.policy.dispatch import Dispatcher, UnknownDispatcherError, load_dispatcher
from chiron.policy.fleet import ChironSettings, GlobalAutoscaler, UnknownAutoscalerError, load_autoscaler
from chiron.policy.local import LocalAutoscaler, UnknownLocalAutoscalerError, load_local
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.baselines.llumnix import FreenessAutoscaler, FreenessDispatcher
from chiron.sim.settings import SimSettings

STATIC = "static"
"""The name that stands for no local autoscaler: limits stay as they start."""
_AUTOSCALERS: Mapping[str, Callable[[], GlobalAutoscaler]] = {
    "fixed": FixedFleet,
    "llumnix": FreenessAutoscaler,
}
_DISPATCHERS: Mapping[str, Callable[[], Dispatcher]] = {"llumnix": FreenessDispatcher}
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
    about: str = ""


POLICIES: Mapping[str, PolicyParts] = {
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
    "llumnix-queue": PolicyParts(
        "llumnix",
        "llumnix",
        STATIC,
        shared_queue=True,
        preemption=False,
        about="the same with one queue for all that waits",
    ),
    "llumnix-preempting": PolicyParts(
        "llumnix",
        "least-expected-wait",
        STATIC,
        about="its scaling alone, over Chiron's dispatch, queues and preemption",
    ),
    "fixed": PolicyParts("fixed", "least-expected-wait", STATIC, about="a fixed fleet, static batch size"),
    "fixed-model": PolicyParts(
        "fixed", "least-expected-wait", "model", about="a fixed fleet with Chiron's local autoscaler"
    ),
}
"""By the names that scenarios and commands use."""


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

    @property
    def label(self) -> str:
        """The name, and the parts that differ."""
        given = {"autoscaler": self.autoscaler, "dispatcher": self.dispatcher, "local": self.local}
        changed = [f"{key}={name}" for key, name in given.items() if name is not None]
        if self.preemption is not None:
            changed.append(f"preemption={'on' if self.preemption else 'off'}")
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    @property
    def parts(self) -> PolicyParts:
        """The names of all parts. Raises ConfigError for an unknown policy."""
        if self.name not in POLICIES:
            known = ", ".join(sorted(POLICIES))
            raise ConfigError(f"unknown policy {self.name!r}; known are {known}")
        parts = POLICIES[self.name]
        given = {
            key: getattr(self, key)
            for key in ("autoscaler", "dispatcher", "local", "preemption")
            if getattr(self, key) is not None
        }
        return dataclasses.replace(parts, **given)

    def make(self) -> Policy:
        """New policy objects, which have seen nothing.

        Raises ConfigError for an unknown name, PartError for a part that cannot be loaded.
        """
        parts = self.parts
        autoscaler = _loaded("autoscaler", parts.autoscaler, _AUTOSCALERS, self._autoscaler)
        dispatcher = _loaded("dispatcher", parts.dispatcher, _DISPATCHERS, load_dispatcher)
        local = None
        if parts.local != STATIC:
            _loaded("local", parts.local, {}, load_local)
            local = partial(load_local, parts.local)
        return Policy(self.label, autoscaler, dispatcher, local, parts)

    def _autoscaler(self, name: str) -> GlobalAutoscaler:
        return load_autoscaler(name, self.settings)


def _loaded(part: str, name: str, own: Mapping[str, Callable[[], T]], load: Callable[[str], T]) -> T:
    """A part by its name, one of the simulator's `own` or another. Raises PartError."""
    if name in own:
        return own[name]()
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

    def settings(self, settings: SimSettings) -> SimSettings:
        """The settings under which it runs: a pinning policy has no queue but the engines'.

        A scenario may turn preemption off or share a queue for policies that would not.
        """
        parts = self.parts
        queues = dataclasses.replace(
            settings.queues,
            preemption=settings.queues.preemption and parts.preemption,
            shared=settings.queues.shared or parts.shared_queue,
        )
        return dataclasses.replace(
            settings,
            queues=queues,
            engine_queue=_NO_LIMIT if parts.pinned else settings.engine_queue,
            discipline="fcfs" if parts.shared_queue else settings.discipline,
        )
