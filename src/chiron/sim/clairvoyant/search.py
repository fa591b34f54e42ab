"""The schedule that attains with the fewest GPU-hours, found by simulating several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from chiron.policy.words import Role
from chiron.sim.autoscalers import Beforehand
from chiron.sim.clairvoyant.fleet import ClairvoyantFleet, Schedule
from chiron.sim.clairvoyant.future import Future, future_of
from chiron.sim.policies import POLICIES, TOLD, Policy, PolicyChoice, PolicyParts
from chiron.sim.runs import Run, attains, most_instances, run
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import SimModel

(NAME,) = TOLD
FILLS = (0.3, 0.5, 0.7)
"""Tried one after the other until one does not attain."""
EMPTIER_FILLS = (0.0, -0.3, -0.6)
"""Tried if the first does not, until one does, with more capacity to spare for batch work."""
_SPARE = 0.1
LEAST_STOP_S = 150.0
OTHER_STOPS_S = (400.0,)
"""Tried with the fill that was found."""
_FIRST_S = 30.0
"""The first instances are as many as the arrivals of so much time and a load need."""


@dataclass(frozen=True, slots=True)
class ClairvoyantChoice(PolicyChoice):
    """A policy that is told the workload. Only this module makes one: no name leads to it."""

    known: Mapping[str, Future] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def parts(self) -> PolicyParts:
        """See `PolicyChoice.parts`."""
        about = "a schedule made with the workload in hand: a reference, not a policy"
        return dataclasses.replace(POLICIES["fixed"], autoscaler="clairvoyant", about=about)

    def make(self, known: Beforehand | None = None) -> Policy:
        """See `PolicyChoice.make`."""
        made = PolicyChoice("fixed").make(known)
        fleet = ClairvoyantFleet(self.known, self.schedule)
        return dataclasses.replace(
            made, label=NAME, autoscaler=fleet, parts=self.parts, autoscaler_settings=self.schedule
        )


def feasible(scenario: Scenario, reading: Reading) -> Run | None:
    """The run of the best schedule that attains; None when none of those tried does.

    It is told the very requests that are reported, and the true step and load times, and is simulated like
    any other: load times, whole GPUs, drains and noise are as they are. Its instances have the limits that
    suit the requests best, and the first ones are as many as it wants.
    """
    futures = (
        future_of(scenario.settings, reading.workload, index)
        for index in range(len(scenario.settings.models))
    )
    by_name = dict(zip((model.name for model in scenario.settings.models), futures, strict=True))
    known = {name: future for name, future in by_name.items() if future is not None}
    settings = scenario.settings
    models = tuple(
        _model(model, known.get(model.name), most_instances(settings, model)) for model in settings.models
    )
    prepared = dataclasses.replace(scenario, settings=dataclasses.replace(settings, models=models))

    def tried(schedule: Schedule) -> Run | None:
        done = run(prepared, ClairvoyantChoice(NAME, known=known, schedule=schedule), reading=reading)
        return done if attains(done.result) else None

    found: list[tuple[Schedule, Run]] = []
    for schedule in (Schedule(fill, LEAST_STOP_S) for fill in FILLS):
        done = tried(schedule)
        if done is None:
            break
        found.append((schedule, done))
    for schedule in (Schedule(fill, LEAST_STOP_S, _SPARE) for fill in EMPTIER_FILLS if not found):
        done = tried(schedule)
        if done is not None:
            found.append((schedule, done))
            break
    if not found:
        return None
    best = min(found, key=lambda each: each[1].result.gpu_hours)[0]
    others = [tried(dataclasses.replace(best, least_stop_s=least_stop_s)) for least_stop_s in OTHER_STOPS_S]
    runs = [each for _, each in found] + [each for each in others if each is not None]
    return min(runs, key=lambda each: each.result.gpu_hours)


def _model(model: SimModel, future: Future | None, most: int) -> SimModel:
    if future is None:
        return dataclasses.replace(model, initial={}, min_instances=0)
    pace = future.pace
    span_s = future.load_s + _FIRST_S
    work = future.until(span_s)
    instances = ceil(work / (span_s * pace.work_per_s(pace.batch_size)))
    return dataclasses.replace(
        model,
        initial={Role.MIXED: min(most, max(1, model.min_instances, instances))},
        initial_batch_size=pace.batch_size,
        initial_step_token_budget=pace.step_token_budget,
    )
