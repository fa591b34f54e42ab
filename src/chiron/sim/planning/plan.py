"""The whole what-if: the fewest GPUs, and what growth and other promises would need."""

from __future__ import annotations

from dataclasses import dataclass, field

from chiron.config import ConfigError
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.mix import Candidates, Mix, mixes
from chiron.sim.planning.need import FixedNeed, Need, Terms, fixed_need, need
from chiron.sim.planning.sized import budgets, most_in_use, with_room_for
from chiron.sim.planning.source import Slo, Source
from chiron.sim.policies import PolicyChoice


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. The first growth and the first SLO are the ones that the curve is about."""

    terms: Terms
    growth: tuple[float, ...] = (1.0,)
    """Times the load."""
    slos: tuple[Slo, ...] = (Slo(),)
    budgets: tuple[int, ...] = ()
    """That the curve is to have in any case."""
    candidates: Candidates = field(default_factory=dict)
    """Profiles by model, among which the cheapest are to be found; empty: nothing is asked."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What another load needs."""

    factor: float
    need: Need
    fixed: FixedNeed


@dataclass(frozen=True, slots=True)
class Promised:
    """What other SLOs need."""

    slo: Slo
    need: Need
    fixed: FixedNeed


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    source: Source
    """Of the first growth and SLO."""
    policy: PolicyChoice
    question: Question
    need: Need
    fixed: FixedNeed
    growth: tuple[Grown, ...]
    """The first included, when there are several."""
    slos: tuple[Promised, ...]
    """Likewise."""
    mixes: tuple[Mix, ...]
    """Of GPU types, the cheapest first; empty: not asked for."""
    runs: int
    """Simulations that it took."""


def plan(source: Source, policy: PolicyChoice, question: Question, crew: Crew) -> Plan:
    """Answers a question.

    Raises ConfigError for a policy, a trace or a limit that cannot be used.
    """
    if policy.parts.autoscaler == "fixed":
        raise ConfigError(
            f"policy {policy.label!r} scales nothing: ask about another one, beside which the smallest fixed "
            "fleet is told"
        )
    scenario = source.scenario
    most = question.terms.most_gpus or most_in_use(scenario.settings)
    scenario = with_room_for(scenario, most)
    if not budgets(scenario.settings, most):
        raise ConfigError(f"--max-gpus: {most} GPUs are fewer than the models' first instances need")
    whole = source
    terms = Terms(question.terms.seeds, question.terms.goal, most)
    source = Source(scenario, source.recorded, source.growth)
    loads = [source.grown(factor) for factor in question.growth]
    first = loads[0].promising(question.slos[0])
    found = need(first, policy, terms, crew, also=question.budgets)
    fixed = fixed_need(first, policy, terms, crew)
    also = () if found.gpus is None else (found.gpus,)
    growth = [Grown(question.growth[0], found, fixed)]
    for factor, load in zip(question.growth[1:], loads[1:], strict=True):
        grown = load.promising(question.slos[0])
        growth.append(
            Grown(
                factor,
                need(grown, policy, terms, crew, also=also, check=False),
                fixed_need(grown, policy, terms, crew),
            )
        )
    slos = [Promised(question.slos[0], found, fixed)]
    for slo in question.slos[1:]:
        promised = loads[0].promising(slo)
        slos.append(
            Promised(
                slo,
                need(promised, policy, terms, crew, also=also, check=False),
                fixed_need(promised, policy, terms, crew),
            )
        )
    mixed: list[Mix] = []
    if question.candidates:
        asked = Terms(terms.seeds, terms.goal, question.terms.most_gpus)
        load = whole.grown(question.growth[0]).promising(question.slos[0])
        mixed = mixes(load, policy, asked, crew, question.candidates)
    return Plan(
        source=first,
        policy=policy,
        question=question,
        need=found,
        fixed=fixed,
        growth=tuple(growth) if len(growth) > 1 else (),
        slos=tuple(slos) if len(slos) > 1 else (),
        mixes=tuple(mixed),
        runs=crew.done,
    )
