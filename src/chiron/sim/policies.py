"""Policies by name: what scales the fleet, what places requests, what sets each instance's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from chiron.config import ConfigError
from chiron.policy.dispatch import Dispatcher, UnknownDispatcherError, load_dispatcher
from chiron.policy.fleet import GlobalAutoscaler, UnknownAutoscalerError, load_autoscaler
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


@dataclass(frozen=True, slots=True)
class PolicyParts:
    """The names of a policy's parts."""

    autoscaler: str
    dispatcher: str
    local: str
    pinned: bool = False
    """Requests wait at the instance that got them, not in one queue at the router."""
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
        "llumnix", "llumnix", STATIC, pinned=True, about="freeness, static batch size, migration off"
    ),
    "llumnix-queue": PolicyParts(
        "llumnix", "llumnix", STATIC, about="the same with one queue for all that waits"
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

    @property
    def label(self) -> str:
        """The name, and the parts that differ."""
        given = {"autoscaler": self.autoscaler, "dispatcher": self.dispatcher, "local": self.local}
        changed = [f"{key}={name}" for key, name in given.items() if name is not None]
        return f"{self.name}[{','.join(changed)}]" if changed else self.name

    @property
    def parts(self) -> PolicyParts:
        """The names of all parts. Raises ConfigError for an unknown policy."""
        if self.name not in POLICIES:
            known = ", ".join(sorted(POLICIES))
            raise ConfigError(f"unknown policy {self.name!r}; known are {known}")
        parts = POLICIES[self.name]
        return dataclasses.replace(
            parts,
            autoscaler=self.autoscaler or parts.autoscaler,
            dispatcher=self.dispatcher or parts.dispatcher,
            local=self.local or parts.local,
        )

    def make(self) -> Policy:
        """New policy objects, which have seen nothing. Raises ConfigError for an unknown name."""
        parts = self.parts
        try:
            autoscaler = (
                _AUTOSCALERS[parts.autoscaler]()
                if parts.autoscaler in _AUTOSCALERS
                else load_autoscaler(parts.autoscaler)
            )
            dispatcher = (
                _DISPATCHERS[parts.dispatcher]()
                if parts.dispatcher in _DISPATCHERS
                else load_dispatcher(parts.dispatcher)
            )
            local = None
            if parts.local != STATIC:
                load_local(parts.local)
                local = partial(load_local, parts.local)
        except (UnknownAutoscalerError, UnknownDispatcherError, UnknownLocalAutoscalerError) as error:
            raise ConfigError(str(error)) from error
        return Policy(self.label, autoscaler, dispatcher, local, parts.pinned)


@dataclass(frozen=True, slots=True)
class Policy:
    """Policy objects for one run."""

    label: str
    autoscaler: GlobalAutoscaler
    dispatcher: Dispatcher
    local: Callable[[], LocalAutoscaler] | None
    """Makes one for each instance; None: limits stay as they start."""
    pinned: bool

    def settings(self, settings: SimSettings) -> SimSettings:
        """The settings under which it runs: a pinning policy has no queue but the engines'."""
        return dataclasses.replace(settings, engine_queue=_NO_LIMIT) if self.pinned else settings
