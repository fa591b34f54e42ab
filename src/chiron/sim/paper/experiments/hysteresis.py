"""How often each policy scales, and how often it takes back within one load time what it did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.loads import interactive
from chiron.sim.paper.experiments.rate_tables import again, attainment, ratio
from chiron.sim.paper.experiments.telling import each_by, expected, grouped
from chiron.sim.paper.sections import (
    Axis,
    Finding,
    Plot,
    Section,
    Series,
    mean,
    point,
    row,
    share,
    spread,
    table,
)
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario

NAME = "hysteresis"
POLICIES = ("chiron", "chiron-paper", "llumnix", "utilization", "queue-length", "in-flight", "dynamo-like")
REFERENCE = "utilization"
"""Whose actions and reversals the goal is a share of."""
GOAL = 1 / 3


def scenarios(*, quick: bool) -> tuple[tuple[str, Scenario], ...]:
    """Constant, bursty and wavy traffic, by a short name."""
    whole_s = 800.0 if quick else 1500.0
    waves = {"shape": "diurnal", "swing": 0.5, "period_s": whole_s / 2, "peak_s": whole_s / 4}
    shapes = [
        ("constant", interactive(quick=quick)),
        ("waves", interactive(quick=quick, what="waves", traffic=waves)),
    ]
    if not quick:
        shapes.append(("bursts, CV 4", interactive(quick=quick, what="CV 4", traffic={"cv": 4.0})))
    return tuple(shapes)


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every policy under every shape of traffic."""
    return [
        Case(NAME, {"traffic": name}, scenario, PolicyChoice(policy), seed)
        for name, scenario in scenarios(quick=size.quick)
        for policy in POLICIES
        for seed in size.reported(quick=1, full=2)
    ]


def per_hour(figures: Figures, name: str) -> float:
    """Actions or reversals per simulated hour, those of the warm-up included."""
    found: int = figures[name]
    return found * 3600 / float(figures["simulated_s"])


def _per_hour_of(outcome: Outcome, name: str) -> float:
    return per_hour(outcome.figures, name)


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Actions and reversals an hour."""
    rows = [
        row(
            traffic,
            policy,
            spread((per_hour(each.figures, "scaling_actions") for each in mine), ".1f"),
            spread((per_hour(each.figures, "reversals") for each in mine), ".1f"),
            share(mean(attainment(each.figures) for each in mine)),
            spread((ratio(each.figures) for each in mine), ".3f"),
            command=again(mine),
        )
        for (traffic, policy), mine in grouped(outcomes, "traffic", "policy").items()
    ]
    columns = ("traffic", "policy", "actions an hour", "reversals an hour", "attainment", "× oracle-lb")
    return Section(
        HYSTERESIS.title,
        (
            expected(
                "scaling with hysteresis acts seldom and takes back little; the goal is a third at most of "
                f"the actions and the reversals of `{REFERENCE}`."
            ),
            "A reversal gives back within one load time what an action took, or takes back what it gave. "
            "Starts, retirements, changes of role, wakes and sleeps count; those of the warm-up too.",
        ),
        (table("Means over the seeds", columns, rows),),
        tuple(
            _plot(outcomes, name, label)
            for name, label in (("scaling_actions", "actions"), ("reversals",) * 2)
        ),
        _findings(outcomes),
    )


def _plot(outcomes: Sequence[Outcome], figure: str, label: str) -> Plot:
    places = list(dict.fromkeys(str(each.case.labels["traffic"]) for each in outcomes))
    by_policy: dict[str, list[tuple[str, list[Outcome]]]] = {}
    for (traffic, policy), mine in grouped(outcomes, "traffic", "policy").items():
        by_policy.setdefault(policy, []).append((traffic, mine))
    series = tuple(
        Series(
            policy,
            tuple(
                point(float(places.index(traffic)), (per_hour(each.figures, figure) for each in mine))
                for traffic, mine in found
            ),
        )
        for policy, found in by_policy.items()
    )
    axis = f"{label} an hour"
    return Plot(f"{NAME}-{label}", axis, Axis("", ticks=tuple(places)), Axis(axis, least=0.0), series, "bars")


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    found = []
    for name, label in (("scaling_actions", "actions"), ("reversals", "reversals")):
        means = each_by(grouped(outcomes, "policy", "traffic"), partial(_per_hour_of, name=name))
        for traffic in dict.fromkeys(place[1] for place in means):
            ours, theirs = means.get(("chiron", traffic)), means.get((REFERENCE, traffic))
            if ours is None or theirs is None:
                continue
            found.append(
                Finding(
                    f"chiron's {label} an hour, {traffic}",
                    f"a third at most of {REFERENCE}'s {theirs:.1f}",
                    f"{ours:.1f}",
                    "met" if ours <= GOAL * theirs else "not met",
                )
            )
    return tuple(found)


HYSTERESIS = Experiment(
    NAME,
    "Hysteresis",
    "How often each policy scales under constant, bursty and wavy traffic, and how often it takes back "
    "within one load time what it did.",
    cases,
    tell,
)
