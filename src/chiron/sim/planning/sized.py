"""How much hardware a trial has: a GPU budget that a policy may use, or a fixed fleet."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

from chiron.config import ConfigError
from chiron.policy.words import Role
from chiron.sim.runs import fixed_model, most_gpus, part_of_model
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import SimModel, SimSettings


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
    """The scenario with nodes for so many GPUs, of the types in proportion, and no budget below.

    Raises ConfigError when there are fewer and the cluster has several types: which to add, nobody says.
    """
    settings = scenario.settings
    if gpus > most_gpus(dataclasses.replace(settings, gpu_budget=0)):
        if len(settings.gpu_types) > 1:
            raise ConfigError(
                f"--max-gpus: {scenario.file} has several [[cluster.gpus]]: give them the nodes that they "
                "may have at most"
            )
        (kind,) = settings.gpu_types
        fit = min(kind.gpus_per_node // model.profile.gpus * model.profile.gpus for model in settings.models)
        kind = dataclasses.replace(kind, nodes=math.ceil(gpus / fit))
        settings = dataclasses.replace(settings, gpu_types=(kind,))
    settings = dataclasses.replace(settings, gpu_budget=gpus)
    return dataclasses.replace(scenario, settings=settings)


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
