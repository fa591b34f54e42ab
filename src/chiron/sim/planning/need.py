"""How many GPUs one workload needs under one policy, and how many as a fixed fleet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chiron.sim.oracle import oracle_lb_gpu_s
from chiron.sim.parameters import Parameters, settable
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.points import Curve, Point
from chiron.sim.planning.search import Found, smallest
from chiron.sim.planning.sized import Budget, FixedInstances, Hardware, budgets
from chiron.sim.planning.source import Source
from chiron.sim.planning.trial import Trial
from chiron.sim.policies import PolicyChoice, StaticLimits
from chiron.sim.runs import INTERACTIVE_GOAL, most_instances, part_of_model
from chiron.sim.scenario import Reading, Scenario


@dataclass(frozen=True, slots=True)
class Terms:
    """Under which a number of GPUs counts as enough."""

    seeds: tuple[int, ...]
    """It has to attain on all of them."""
    goal: float = INTERACTIVE_GOAL
    """Share of the interactive requests that must attain; of the batch deadlines all must be met."""
    most_gpus: int = 0
    """GPUs that are tried at most; 0: the scenario's."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a policy needs."""

    policy: str
    found: Found
    curve: Curve
    most_gpus: int
    """GPUs that were tried at most, or would have been."""

    @property
    def gpus(self) -> int | None:
        """The fewest; None: none that were tried do."""
        return self.found.size

    @property
    def point(self) -> Point | None:
        """What was found with the fewest."""
        return None if self.gpus is None else self.curve.points[self.gpus]


@dataclass(frozen=True, slots=True)
class FixedNeed:
    """What fixed fleets need, each model's by itself."""

    instances: Mapping[str, int | None]
    """By model; None: no fleet that the scenario allows attains."""
    gpus: int | None
    """Of all of them; None: a model's fleet does not attain, or they do not fit together."""
    points: Mapping[str, Point]
    """By model: its fleet, or the best that there is."""
    price_per_hour: float | None
    """Of the GPUs; None: they have no price, or there is no such fleet."""


def need(
    source: Source,
    policy: PolicyChoice,
    terms: Terms,
    crew: Crew,
    *,
    also: Sequence[int] = (),
    check: bool = True,
) -> Need:
    """The smallest GPU budget under which a policy attains on every seed.

    Args:
        source: the workload; its scenario has room for the most GPUs.
        policy: who decides.
        terms: what is enough.
        crew: does the work.
        also: budgets to try in any case.
        check: try the neighbours of the answer too, which makes the curve.

    Raises:
        ConfigError: a policy or a trace that cannot be used.
    """
    curve = Curve()
    scenario, reading = source.at(terms.seeds[0])
    ladder = budgets(scenario.settings, terms.most_gpus)

    def ask(sizes: Sequence[int]) -> Mapping[int, bool]:
        points = _points(source, policy, [Budget(size) for size in sizes], terms, crew)
        curve.points.update(zip(sizes, points, strict=True))
        return {size: curve.points[size].attains for size in sizes}

    start = least_gpus(scenario, reading)
    found = smallest(ladder, ask, start=start, width=_width(terms, crew), also=also, check=check)
    return Need(policy.label, found, curve, ladder[-1])


def fixed_need(source: Source, policy: PolicyChoice, terms: Terms, crew: Crew) -> FixedNeed:
    """The smallest fixed fleet that attains on every seed, with the rest of the policy as it is."""
    held = held_fixed(policy)
    scenario, reading = source.at(terms.seeds[0])
    settings = scenario.settings
    kinds = {kind.name: kind for kind in settings.gpu_types}
    instances: dict[str, int | None] = {}
    points: dict[str, Point] = {}
    gpus, price = 0, 0.0
    for index, model in enumerate(settings.models):
        mine = part_of_model(reading, index)
        if not len(mine.workload):
            instances[model.name] = 0
            continue
        alone = dataclasses.replace(
            scenario, settings=dataclasses.replace(settings, models=(model,), gpu_budget=0)
        )
        start = math.ceil(least_gpus(alone, mine) / model.profile.gpus)
        instances[model.name], points[model.name] = _fleet(source, index, held, start, terms, crew)
        mine_gpus = (instances[model.name] or 0) * model.profile.gpus
        kind = kinds[model.gpu_type or settings.gpu_types[0].name]
        gpus += mine_gpus
        price += mine_gpus * (kind.price_per_gpu_hour or 0.0)
    fits = None not in instances.values() and gpus <= terms.most_gpus
    priced = any(kind.price_per_gpu_hour is not None for kind in kinds.values())
    return FixedNeed(instances, gpus if fits else None, points, price if fits and priced else None)


def held_fixed(policy: PolicyChoice) -> PolicyChoice:
    """The policy with a fixed fleet in place of its autoscaler, whose settings go with it."""
    limits = {
        name: value for name, value in policy.parts.parameters.items() if name in settable(StaticLimits)
    }
    fixed = dataclasses.replace(policy, autoscaler="fixed", settings=None, parameters=Parameters(limits))
    if fixed.parts.parameters.keys() <= limits.keys():
        return fixed
    # What a policy sets its autoscaler to stays with its name, so that its other parts are named one by one.
    parts = policy.parts
    return PolicyChoice(
        "fixed",
        dispatcher=parts.dispatcher,
        local=parts.local,
        preemption=parts.preemption,
        parameters=Parameters(limits),
    )


def _fleet(
    source: Source, index: int, policy: PolicyChoice, start: int, terms: Terms, crew: Crew
) -> tuple[int | None, Point]:
    """The fewest instances of one model that attain, if any do, and what they do or the best do."""
    curve = Curve()
    settings = source.scenario.settings
    model = settings.models[index]

    def ask(counts: Sequence[int]) -> Mapping[int, bool]:
        fleets = [FixedInstances(index, count, count * model.profile.gpus) for count in counts]
        curve.points.update(zip(counts, _points(source, policy, fleets, terms, crew), strict=True))
        return {count: curve.points[count].attains for count in counts}

    ladder = range(max(1, model.min_instances), most_instances(settings, model) + 1)
    found = smallest(ladder, ask, start=start, width=_width(terms, crew), check=False)
    return found.size, curve.best if found.size is None else curve.points[found.size]


def least_gpus(scenario: Scenario, reading: Reading) -> int:
    """GPUs without which the work cannot be done before the last request or deadline: oracle-lb over time."""
    workload = reading.workload
    finite = workload.deadline_s[np.isfinite(workload.deadline_s)]
    end_s = max(float(workload.arrival_s[-1]), float(finite.max()) if len(finite) else 0.0)
    span_s = max(end_s - float(workload.arrival_s[0]), 1.0)
    return max(1, math.ceil(oracle_lb_gpu_s(scenario.settings, workload) / span_s))


def _points(
    source: Source, policy: PolicyChoice, sizes: Sequence[Hardware], terms: Terms, crew: Crew
) -> list[Point]:
    trials = [Trial(source, size, policy, seed, terms.goal) for size in sizes for seed in terms.seeds]
    attempts = crew.all_of(trials)
    each = len(terms.seeds)
    return [
        Point(size.gpus, tuple(attempts[number * each : (number + 1) * each]))
        for number, size in enumerate(sizes)
    ]


def _width(terms: Terms, crew: Crew) -> int:
    return max(1, crew.width // len(terms.seeds))
