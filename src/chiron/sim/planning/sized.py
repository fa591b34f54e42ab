"""How much hardware a trial has: a GPU budget that a policy may use, or a fixed fleet."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chiron.config import ConfigError
from chiron.policy.words import Role
from chiron.sim.runs import fixed_model, part_of_model
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import GpuType, SimModel, SimSettings


class Hardware(Protocol):
    """Sizes a scenario."""

    @property
    def gpus(self) -> int:
        """GPUs that may be held at once."""

    def of(self, scenario: Scenario, reading: Reading) -> tuple[Scenario, Reading]:
        """The scenario with so much hardware, and the requests that come to it."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most so many GPUs at once, of all models together."""

    gpus: int

    def of(self, scenario: Scenario, reading: Reading) -> tuple[Scenario, Reading]:
        """Sets the budget; instances of the start that it has no room for are left out."""
        settings = scenario.settings
        models = _fitting(settings.models, self.gpus)
        settings = dataclasses.replace(settings, gpu_budget=self.gpus, models=models)
        return dataclasses.replace(scenario, settings=settings), reading


@dataclass(frozen=True, slots=True)
class FixedInstances:
    """So many instances of one model, which serve its requests alone: fixed fleets share nothing."""

    model: int
    """Index."""
    instances: int
    gpus: int
    """Of all its instances."""

    def of(self, scenario: Scenario, reading: Reading) -> tuple[Scenario, Reading]:
        """Leaves that model, its instances and its requests."""
        settings = scenario.settings
        model = fixed_model(settings.models[self.model], self.instances)
        settings = dataclasses.replace(settings, models=(model,), gpu_budget=0)
        return dataclasses.replace(scenario, settings=settings), part_of_model(reading, self.model)


def budgets(settings: SimSettings, most: int) -> list[int]:
    """Budgets worth trying, from the fewest GPUs that the models need to `most`."""
    sizes = [model.profile.gpus for model in settings.models]
    needed = sum(model.min_instances * model.profile.gpus for model in settings.models)
    return list(range(max([*sizes, needed]), most + 1, math.gcd(*sizes)))


def with_room_for(scenario: Scenario, gpus: int) -> Scenario:
    """The scenario with nodes for so many GPUs, those types alone that its models are on, and that budget.

    Raises ConfigError when there are fewer of several types: which to add, nobody says.
    """
    settings = scenario.settings
    first = settings.gpu_types[0].name
    models = tuple(dataclasses.replace(model, gpu_type=model.gpu_type or first) for model in settings.models)
    used = {model.gpu_type for model in models}
    kinds = tuple(kind for kind in settings.gpu_types if kind.name in used)
    if gpus > sum(kind.nodes * kind.gpus_per_node for kind in kinds):
        if len(kinds) > 1:
            raise ConfigError(
                f"--max-gpus: the models of {scenario.file} are on several [[cluster.gpus]]: give them the "
                "nodes that they may have at most"
            )
        kinds = (roomy(kinds[0], gpus, [model.profile.gpus for model in models]),)
    settings = dataclasses.replace(settings, gpu_types=kinds, models=models, gpu_budget=gpus)
    return dataclasses.replace(scenario, settings=settings)


def roomy(kind: GpuType, gpus: int, sizes: Sequence[int]) -> GpuType:
    """The type with nodes for so many GPUs in instances of these sizes; never fewer than it has."""
    fit = min(kind.gpus_per_node // size * size for size in sizes)
    return dataclasses.replace(kind, nodes=max(kind.nodes, math.ceil(gpus / fit)))


def most_in_use(settings: SimSettings) -> int:
    """GPUs of the types that the models are on, within the budget."""
    used = {model.gpu_type or settings.gpu_types[0].name for model in settings.models}
    there_are = sum(kind.nodes * kind.gpus_per_node for kind in settings.gpu_types if kind.name in used)
    return min(there_are, settings.gpu_budget or there_are)


def _fitting(models: tuple[SimModel, ...], gpus: int) -> tuple[SimModel, ...]:
    """Fewer first instances where they do not fit: one by one of the model that has the most GPUs."""
    first = [dict(model.initial) for model in models]

    def held(index: int) -> int:
        return sum(first[index].values()) * models[index].profile.gpus

    while sum(map(held, range(len(models)))) > gpus:
        index = max(range(len(models)), key=held)
        role = max(first[index], key=lambda role: (first[index][role], role is Role.MIXED))
        first[index][role] -= 1
    return tuple(
        dataclasses.replace(model, initial=initial) for model, initial in zip(models, first, strict=True)
    )
