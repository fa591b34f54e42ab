"""Global autoscalers by name, Chiron's and the baselines', with what each can be set to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chiron.policy.fleet import ChironSettings, GlobalAutoscaler, autoscaler_names, load_autoscaler
from chiron.sim.baselines.dynamo import DynamoAutoscaler, DynamoSettings
from chiron.sim.baselines.fixed import FixedFleet
from chiron.sim.baselines.in_flight import InFlightAutoscaler, InFlightSettings
from chiron.sim.baselines.llumnix import FreenessAutoscaler, FreenessThresholds
from chiron.sim.baselines.queue_length import QueueLengthAutoscaler, QueueLengthSettings
from chiron.sim.baselines.utilization import UtilizationAutoscaler, UtilizationSettings
from chiron.sim.parameters import adjusted, settable
from chiron.sim.settings import SimModel


@dataclass(frozen=True, slots=True)
class Beforehand:
    """What may be known before a run begins."""

    models: tuple[SimModel, ...] = ()
    """As the scenario gives them: what somebody who profiles their engines on idle GPUs would find."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """An autoscaler that only the simulator has."""

    make: Callable[[Any, Beforehand], GlobalAutoscaler]
    """From its settings and what is known beforehand."""
    settings: object | None = None
    """The defaults, an object of a frozen dataclass; None: it has none."""


BASELINES: Mapping[str, Baseline] = {
    "fixed": Baseline(lambda _settings, _known: FixedFleet()),
    "llumnix": Baseline(lambda settings, _known: FreenessAutoscaler(settings), FreenessThresholds()),
    "queue-length": Baseline(lambda settings, _known: QueueLengthAutoscaler(settings), QueueLengthSettings()),
    "utilization": Baseline(lambda settings, _known: UtilizationAutoscaler(settings), UtilizationSettings()),
    "in-flight": Baseline(lambda settings, _known: InFlightAutoscaler(settings), InFlightSettings()),
    "dynamo-like": Baseline(
        lambda settings, known: DynamoAutoscaler(settings, known.models), DynamoSettings()
    ),
}


def defaults_of(name: str) -> object | None:
    """The default settings of the autoscaler of this name; None: it has none, as every module:Class."""
    if name in BASELINES:
        return BASELINES[name].settings
    return ChironSettings() if name in autoscaler_names() else None


def settings_for(name: str, parameters: Mapping[str, float], base: ChironSettings | None) -> object | None:
    """What the autoscaler of this name is set to, by parameters that it has. Raises ParameterError.

    base: what one of Chiron's own is set to otherwise; None: the defaults.
    """
    settings = defaults_of(name)
    if isinstance(settings, ChironSettings) and base is not None:
        settings = base
    return None if settings is None else adjusted(settings, parameters)


def parameter_names(name: str) -> list[str]:
    """What the autoscaler of this name can be set to by numbers."""
    settings = defaults_of(name)
    return [] if settings is None else sorted(settable(settings))


def make_autoscaler(name: str, settings: object | None, known: Beforehand) -> GlobalAutoscaler:
    """One that has seen nothing. Raises UnknownAutoscalerError, and PolicyError when its own code fails."""
    if name in BASELINES:
        return BASELINES[name].make(settings, known)
    return load_autoscaler(name, settings if isinstance(settings, ChironSettings) else None)
