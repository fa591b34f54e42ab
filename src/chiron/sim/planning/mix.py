"""Which model on which type of GPU is cheapest.

A model's instances are all of one profile, and so of one type; a mix says for each model which. Models of
different types share no GPU, so that each type's models are searched by themselves, once for all mixes that
have them together. A mix whose least price, by the lower bound of the work, is no lower than that of one
found already is not searched.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.config import ConfigError
from chiron.engine import Profile, UnknownProfileError
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.need import Need, Terms, least_gpus, need
from chiron.sim.planning.sized import budgets, most_in_use, roomy
from chiron.sim.planning.source import Part, Source
from chiron.sim.policies import PolicyChoice
from chiron.sim.profile_files import gpu_type_of, load_profile
from chiron.sim.scenario import Scenario, longest
from chiron.sim.scenario_checks import check_gpu_types, check_model
from chiron.sim.settings import GpuType

MOST_MIXES = 1000
"""That a plan looks at: more are a slip of the pen."""
Candidates = Mapping[str, Sequence[Profile]]
"""Profiles by model: on which GPUs its instances may run."""


@dataclass(frozen=True, slots=True)
class OneType:
    """The GPUs of one type in a mix."""

    gpu_type: str
    models: tuple[str, ...]
    price_per_gpu_hour: float
    need: Need | None
    """None: not searched, for the mix cannot be the cheapest."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Each model on one type."""

    profiles: Mapping[str, str]
    """Names, by model."""
    types: tuple[OneType, ...]
    least_price_per_hour: float
    """By the lower bound of the work: what no policy goes below."""

    @property
    def searched(self) -> bool:
        """Whether it was simulated."""
        return all(each.need is not None for each in self.types)

    @property
    def price_per_hour(self) -> float | None:
        """Of the fewest GPUs of each type; None: they do not attain, or were not searched."""
        counts = [None if each.need is None else each.need.gpus for each in self.types]
        if None in counts:
            return None
        return sum(
            (count or 0) * each.price_per_gpu_hour for count, each in zip(counts, self.types, strict=True)
        )

    @property
    def held_per_hour(self) -> float | None:
        """Price of the GPUs held on average; None as above."""
        if self.price_per_hour is None:
            return None
        points = [each.need.point for each in self.types if each.need is not None]
        return sum(point.mean("cost_per_hour") for point in points if point is not None)


def parse_candidates(texts: Iterable[str], scenario: Scenario) -> Candidates:
    """MODEL=PROFILE,… each, for models of a scenario; others keep their profile.

    A profile is a shipped one by name or a file. It has the context, the block size and the speculation of
    the scenario's, so that requests are the same, and its instances run on the GPU type that its name tells.

    Raises ConfigError: unknown model, profile or type, a type without a price, or an instance that does not
    fit.
    """
    models = {model.name: model for model in scenario.settings.models}
    kinds = {kind.name: kind for kind in scenario.settings.gpu_types}
    found: dict[str, Sequence[Profile]] = {}
    for text in texts:
        name, equals, given = text.partition("=")
        profiles = [each.strip() for each in given.split(",") if each.strip()]
        if not (equals and profiles):
            raise ConfigError(f"--candidates: must be MODEL=PROFILE,…, not {text!r}")
        if name not in models:
            raise ConfigError(f"--candidates: unknown model {name!r}; known are {', '.join(models)}")
        if name in found:
            raise ConfigError(f"--candidates: model {name!r} is there twice")
        found[name] = [_candidate(scenario, name, each) for each in profiles]
    for name, model in models.items():
        kind = kinds[model.gpu_type] if model.gpu_type else scenario.settings.gpu_types[0]
        if name not in found:
            _price(kind)
            found[name] = [model.profile.replace(name=_own_name(model.profile, kind))]
    return {name: found[name] for name in models}


def mixes(
    source: Source, policy: PolicyChoice, terms: Terms, crew: Crew, candidates: Candidates
) -> list[Mix]:
    """Every mix, the cheapest first; those that do not attain, or need not be searched, come last."""
    if terms.most_gpus:
        source = _with_room(source, terms.most_gpus, candidates)
    kinds = {kind.name: kind for kind in source.scenario.settings.gpu_types}
    names = list(candidates)
    chosen = list(itertools.islice(itertools.product(*candidates.values()), MOST_MIXES + 1))
    if len(chosen) > MOST_MIXES:
        raise ConfigError(f"--candidates: more than {MOST_MIXES} mixes")
    placed = [dict(zip(names, profiles, strict=True)) for profiles in chosen]
    parts = {number: _parts(each) for number, each in enumerate(placed)}
    bounds: dict[str, int] = {}
    for part in itertools.chain(*parts.values()):
        if repr(part) not in bounds:
            bounds[repr(part)] = least_gpus(*dataclasses.replace(source, part=part).at(terms.seeds[0]))
    least = {
        number: sum(bounds[repr(part)] * _price(kinds[part.gpu_type]) for part in mine)
        for number, mine in parts.items()
    }
    needs: dict[str, Need] = {}
    found: list[Mix] = []
    for number in sorted(parts, key=lambda number: least[number]):
        best = min((mix.price_per_hour for mix in found if mix.price_per_hour is not None), default=None)
        if best is None or least[number] < best:
            for part in parts[number]:
                if repr(part) not in needs:
                    needs[repr(part)] = _need(dataclasses.replace(source, part=part), policy, terms, crew)
        types = tuple(
            OneType(
                part.gpu_type,
                tuple(part.profiles),
                _price(kinds[part.gpu_type]),
                needs.get(repr(part)),
            )
            for part in parts[number]
        )
        profiles = {name: profile.name for name, profile in placed[number].items()}
        found.append(Mix(profiles, types, least[number]))
    return sorted(found, key=_order)


def _with_room(source: Source, gpus: int, candidates: Candidates) -> Source:
    settings = source.scenario.settings
    sizes: dict[str, list[int]] = {}
    for profile in itertools.chain(*candidates.values()):
        sizes.setdefault(gpu_type_of(profile), []).append(profile.gpus)
    kinds = tuple(
        roomy(kind, gpus, sizes[kind.name]) if kind.name in sizes else kind for kind in settings.gpu_types
    )
    settings = dataclasses.replace(settings, gpu_types=kinds)
    return dataclasses.replace(source, scenario=dataclasses.replace(source.scenario, settings=settings))


def _order(mix: Mix) -> tuple[bool, float]:
    price = mix.price_per_hour
    return (True, mix.least_price_per_hour) if price is None else (False, price)


def _need(source: Source, policy: PolicyChoice, terms: Terms, crew: Crew) -> Need:
    scenario, _ = source.at(terms.seeds[0])
    settings = scenario.settings
    (kind,) = settings.gpu_types
    most = terms.most_gpus or most_in_use(settings)
    if not budgets(settings, most):
        names = ", ".join(model.name for model in settings.models)
        raise ConfigError(f"--candidates: {most} GPUs of type {kind.name!r} are too few for {names}")
    return need(source, policy, dataclasses.replace(terms, most_gpus=most), crew, check=False)


def _parts(placed: Mapping[str, Profile]) -> list[Part]:
    kinds = sorted({gpu_type_of(profile) for profile in placed.values()})
    return [
        Part({name: profile for name, profile in placed.items() if gpu_type_of(profile) == kind}, kind)
        for kind in kinds
    ]


def _candidate(scenario: Scenario, name: str, given: str) -> Profile:
    settings = scenario.settings
    (model,) = (model for model in settings.models if model.name == name)
    try:
        profile = load_profile(given, Path())
    except UnknownProfileError as error:
        raise ConfigError(f"--candidates: {error}; or a file of your own, *.toml") from error
    kinds = {kind.name: kind for kind in settings.gpu_types}
    kind = gpu_type_of(profile)
    if kind not in kinds:
        told = (
            f"GPU type {kind!r} of {profile.name!r}"
            if kind
            else f"{profile.name!r} names no GPU type after an @:"
        )
        raise ConfigError(f"--candidates: {told} is none of [[cluster.gpus]]: {', '.join(kinds)}")
    _price(kinds[kind])
    own = model.profile
    profile = profile.replace(
        max_context_tokens=own.max_context_tokens, block_size=own.block_size, speculation=own.speculation
    )
    if longest(profile) < longest(own):
        raise ConfigError(
            f"--candidates: {profile.name!r} holds {longest(profile)} tokens, requests to {name!r} have up "
            f"to {longest(own)}"
        )
    placed = dataclasses.replace(model, profile=profile, gpu_type=kind)
    check_gpu_types([placed], settings.gpu_types, str(scenario.file))
    check_model(placed, longest(profile), f"{scenario.file} [models.{name}]")
    return profile


def _own_name(profile: Profile, kind: GpuType) -> str:
    """The name of a scenario's own profile, so that it tells the type on which the scenario has it."""
    return (
        profile.name if gpu_type_of(profile) == kind.name else f"{profile.name.partition('@')[0]}@{kind.name}"
    )


def _price(kind: GpuType) -> float:
    if kind.price_per_gpu_hour is None:
        raise ConfigError(
            f"--candidates: GPU type {kind.name!r} has no price_per_gpu_hour, and so no mix is the cheapest"
        )
    return kind.price_per_gpu_hour
