"""The workload that is planned for: a scenario or a recording, for any seed, growth and SLO."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chiron.config import ConfigError
from chiron.engine import Profile
from chiron.policy.words import RequestClass
from chiron.sim.runs import part_of
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import LARGEST, SimModel
from chiron.sim.sources import Replay
from chiron.sim.trace_formats import TraceError
from chiron.sim.workload import Workload

_STREAM = 0x50_4C_41_4E
"""Keeps the copies of recorded requests apart from all else that is drawn from the same seed."""
_JITTER_S = 30.0
"""By how much a copy of a recorded request is moved at most: as copies of a scaled trace are."""
_KEPT = 2
"""Workloads that a process remembers: one is drawn for each seed and growth and used for many sizes."""
_readings: dict[str, Reading] = {}


@dataclass(frozen=True, slots=True)
class Slo:
    """Promises to interactive requests that take the place of the scenario's."""

    ttft_s: float | None = None
    """None: as the scenario says."""
    itl_s: float | None = None
    """Of each request's mean; None: as the scenario says."""

    def __post_init__(self) -> None:
        for name in ("ttft_s", "itl_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LARGEST:
                raise ValueError(f"{name}: must be above 0, not {value:g}")


@dataclass(frozen=True, slots=True)
class Part:
    """Some models of a scenario on GPUs of one type, with the requests that come to them."""

    profiles: Mapping[str, Profile]
    """Of each of its models, by name, in the place of the scenario's."""
    gpu_type: str

    def of(self, scenario: Scenario, reading: Reading) -> tuple[Scenario, Reading]:
        """Leaves these models, that type and these requests."""
        settings = scenario.settings
        kept = [index for index, model in enumerate(settings.models) if model.name in self.profiles]
        models = tuple(
            dataclasses.replace(model, profile=self.profiles[model.name], gpu_type=self.gpu_type)
            for model in (settings.models[index] for index in kept)
        )
        (kind,) = (kind for kind in settings.gpu_types if kind.name == self.gpu_type)
        settings = dataclasses.replace(settings, models=models, gpu_types=(kind,))
        reading = part_of(reading, np.isin(reading.workload.model, kept))
        places = np.zeros(max(kept) + 1, dtype=np.int16)
        places[kept] = np.arange(len(kept))
        workload = dataclasses.replace(reading.workload, model=places[reading.workload.model])
        return (
            dataclasses.replace(scenario, settings=settings),
            dataclasses.replace(reading, workload=workload),
        )


@dataclass(frozen=True, slots=True)
class Source:
    """Makes the scenario and its requests for a seed."""

    scenario: Scenario
    recorded: Reading | None = None
    """Requests of a live cluster, which are the same for every seed; None: the scenario draws its own."""
    growth: float = 1.0
    """How many times the load of the scenario comes."""
    part: Part | None = None
    """What of it is looked at; None: all."""
    window: tuple[float, float] = (0.0, 1.0)
    """Which of its requests come: those of this part of the time until the last one, from which it begins."""

    @property
    def is_recorded(self) -> bool:
        """Whether all its requests are from a recording or a trace, and so alike on every seed."""
        scenario = self.scenario
        return self.recorded is not None or bool(
            scenario.replays and not scenario.traffic and not scenario.backlogs
        )

    def between(self, start: float, end: float) -> Source:
        """The same with the requests of a part of the time; shares of it, 0 ≤ start < end ≤ 1."""
        return dataclasses.replace(self, window=(start, end))

    def grown(self, factor: float) -> Source:
        """The same with `factor` times the load.

        Rates, backlogs and the fleet of the start are multiplied; a trace is multiplied or compressed as its
        `scaling` says; of recorded requests there are more, or fewer, over the same time.

        Raises ConfigError for a factor that is not above 0, and a trace without times or that cannot be read.
        """
        if not 0 < factor < math.inf:
            raise ConfigError(f"growth: must be a number above 0, not {factor:g}")
        if factor == 1.0:
            return self
        scenario = self.scenario
        models = tuple(_more_at_first(model, factor) for model in scenario.settings.models)
        scenario = dataclasses.replace(
            scenario,
            settings=dataclasses.replace(scenario.settings, models=models),
            traffic=tuple(
                dataclasses.replace(
                    each, rate_per_s=each.rate_per_s * factor, step_rate_per_s=each.step_rate_per_s * factor
                )
                for each in scenario.traffic
            ),
            backlogs=tuple(
                dataclasses.replace(each, requests=max(1, round(each.requests * factor)))
                for each in scenario.backlogs
            ),
            replays=tuple(_faster(each, factor, scenario) for each in scenario.replays),
        )
        return dataclasses.replace(self, scenario=scenario, growth=self.growth * factor)

    def promising(self, slo: Slo) -> Source:
        """The same with other SLOs for the interactive requests of all models."""
        settings = self.scenario.settings
        models = tuple(
            dataclasses.replace(
                model,
                ttft_slo_s=model.ttft_slo_s if slo.ttft_s is None else slo.ttft_s,
                itl_slo_s=model.itl_slo_s if slo.itl_s is None else slo.itl_s,
            )
            for model in settings.models
        )
        settings = dataclasses.replace(settings, models=models)
        return dataclasses.replace(self, scenario=dataclasses.replace(self.scenario, settings=settings))

    def counting_from(self, warmup_s: float) -> Source:
        """The same with another warm-up. Raises ConfigError when nothing comes after it."""
        settings = dataclasses.replace(self.scenario.settings, warmup_s=warmup_s)
        if self.recorded is not None and self.recorded.workload.arrival_s[-1] < warmup_s:
            raise ConfigError(f"--warmup: no request arrives after {warmup_s:g} s")
        return dataclasses.replace(self, scenario=dataclasses.replace(self.scenario, settings=settings))

    def at(self, seed: int) -> tuple[Scenario, Reading]:
        """The scenario of a seed and its requests, which must not be changed. Raises ConfigError."""
        scenario, reading = self._whole(seed)
        if self.window != (0.0, 1.0):
            reading = _within(reading, *self.window, scenario)
        whole = scenario, reading
        return whole if self.part is None else self.part.of(*whole)

    def _whole(self, seed: int) -> tuple[Scenario, Reading]:
        scenario = self.scenario.with_seed(seed)
        if self.recorded is not None:
            if self.growth == 1.0:
                return scenario, self.recorded
            workload = _multiplied(
                self.recorded.workload, self.growth, np.random.default_rng((_STREAM, seed))
            )
            return scenario, dataclasses.replace(self.recorded, workload=workload)
        # What a model is promised or held on does not change its requests, but its context does.
        drawn = (seed, scenario.duration_s, scenario.traffic, scenario.backlogs, scenario.replays)
        key = repr((*drawn, scenario.file, [model.profile for model in scenario.settings.models]))
        if key not in _readings:
            while len(_readings) >= _KEPT:
                del _readings[next(iter(_readings))]
            _readings[key] = scenario.reading()
        return scenario, _readings[key]


def _within(reading: Reading, start: float, end: float, scenario: Scenario) -> Reading:
    workload = reading.workload
    span_s = float(workload.arrival_s[-1])
    from_s, until_s = start * span_s, end * span_s
    mine = (workload.arrival_s >= from_s) & ((workload.arrival_s < until_s) | (end == 1.0))
    found = part_of(reading, mine).workload
    if not len(found) or found.arrival_s[-1] - from_s < scenario.settings.warmup_s:
        raise ConfigError(f"{scenario.file}: too short to be cut in two: no request counts in one part of it")
    moved = dataclasses.replace(
        found, arrival_s=found.arrival_s - from_s, deadline_s=found.deadline_s - from_s
    )
    return Reading(moved)


def _more_at_first(model: SimModel, factor: float) -> SimModel:
    initial = {role: math.ceil(count * factor) for role, count in model.initial.items()}
    if model.max_instances:
        initial = {role: min(count, model.max_instances) for role, count in initial.items()}
        initial = initial if sum(initial.values()) <= model.max_instances else dict(model.initial)
    return dataclasses.replace(model, initial=initial)


def _faster(replay: Replay, factor: float, scenario: Scenario) -> Replay:
    rate_per_s = replay.rate_per_s
    if rate_per_s is None:
        try:
            rate_per_s = replay.read(scenario.file.parent).rate_per_s
        except TraceError as error:
            raise ConfigError(str(error)) from error
        if not rate_per_s:
            raise ConfigError(f"growth: all requests of {replay.file} arrive at once: it has no rate to grow")
    return dataclasses.replace(replay, rate_per_s=rate_per_s * factor)


def _multiplied(workload: Workload, factor: float, generator: np.random.Generator) -> Workload:
    """As many or as few requests over the same time; copies but the first are moved, deadlines with them."""
    count = len(workload)
    copies = np.full(count, math.floor(factor))
    copies += generator.random(count) < factor - math.floor(factor)
    chosen = np.repeat(np.arange(count), copies)
    if not len(chosen):
        raise ConfigError(f"growth: at {factor:g} times the load no request is left")
    again = np.zeros(len(chosen), dtype=np.bool_)
    again[1:] = chosen[1:] == chosen[:-1]
    moved = workload.arrival_s[chosen] + again * generator.uniform(-_JITTER_S, _JITTER_S, len(chosen))
    end_s = float(workload.arrival_s[-1])
    moved = np.clip(np.where(moved > end_s, 2 * end_s - moved, np.abs(moved)), 0.0, end_s)
    allowed_s = (workload.deadline_s - workload.arrival_s)[chosen]
    order = np.argsort(moved, kind="stable")
    deadline_s = np.where(workload.request_class[chosen] == RequestClass.BATCH, moved + allowed_s, np.inf)
    return _chosen(workload, chosen[order], moved[order], deadline_s[order])


def _chosen(
    workload: Workload,
    chosen: NDArray[np.intp],
    arrival_s: NDArray[np.float64],
    deadline_s: NDArray[np.float64],
) -> Workload:
    """The chosen requests at other times."""
    prefix, refuse_late, tenant = workload.prefix, workload.refuse_late, workload.tenant
    return Workload(
        arrival_s,
        workload.prompt_tokens[chosen],
        workload.output_tokens[chosen],
        workload.request_class[chosen],
        workload.model[chosen],
        deadline_s,
        None if prefix is None else tuple(prefix[at] for at in chosen),
        None if refuse_late is None else refuse_late[chosen],
        None if tenant is None else tuple(tenant[at] for at in chosen),
    )
