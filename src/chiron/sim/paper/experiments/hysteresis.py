"""How often each policy scales, and how often it takes back within one load time what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
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
    number,
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
        Case(NAME, {"traffic": name}, scenario, PolicyChoice(policy), seed, timeline=True)
        for name, scenario in scenarios(quick=size.quick)
        for policy in POLICIES
        for seed in size.reported(quick=1, full=2 if policy in (POLICIES[0], REFERENCE) else 1)
    ]


def actions_per_hour(outcome: Outcome) -> float:
    """Scaling actions per hour of traffic after the warm-up.

    Finding a size, and giving all back once nothing arrives any more, do not count.
    """
    scenario = outcome.case.scenario
    begin_s, end_s = scenario.settings.warmup_s, scenario.duration_s
    counted = [each for each in outcome.figures["actions"] if begin_s <= each["at_s"] <= end_s]
    return len(counted) * 3600 / (end_s - begin_s)


def reversals_per_hour(outcome: Outcome) -> float:
    """Reversals per simulated hour of the whole run."""
    found: int = outcome.figures["reversals"]
    return found * 3600 / float(outcome.figures["simulated_s"])


MEASURES: Mapping[str, Callable[[Outcome], float]] = {
    "actions": actions_per_hour,
    "reversals": reversals_per_hour,
}


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Actions and reversals an hour."""
    rows = [
        row(
            traffic,
            policy,
            spread((actions_per_hour(each) for each in mine), ".1f"),
            spread((reversals_per_hour(each) for each in mine), ".1f"),
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
            "Actions are starts, retirements, changes of role, wakes and sleeps after the warm-up and while "
            "requests arrive; reversals are those of the whole run, those at its beginning included. "
            "Whoever holds more than the load needs has less to do: GPU-hours stand beside the actions.",
        ),
        (table("Means over the seeds", columns, rows),),
        tuple(_plot(outcomes, label) for label in MEASURES),
        _findings(outcomes),
    )


def _plot(outcomes: Sequence[Outcome], label: str) -> Plot:
    places = list(dict.fromkeys(str(each.case.labels["traffic"]) for each in outcomes))
    by_policy: dict[str, list[tuple[str, list[Outcome]]]] = {}
    for (traffic, policy), mine in grouped(outcomes, "traffic", "policy").items():
        by_policy.setdefault(policy, []).append((traffic, mine))
    series = tuple(
        Series(
            policy,
            tuple(point(float(places.index(traffic)), map(MEASURES[label], mine)) for traffic, mine in found),
        )
        for policy, found in by_policy.items()
    )
    axis = f"{label} an hour"
    return Plot(f"{NAME}-{label}", axis, Axis("", ticks=tuple(places)), Axis(axis, least=0.0), series, "bars")


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    found = []
    costs = each_by(grouped(outcomes, "policy", "traffic"), lambda each: ratio(each.figures))
    for label, measure in MEASURES.items():
        means = each_by(grouped(outcomes, "policy", "traffic"), measure)
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
                    f"GPU-hours over the lower bound: chiron {_told(costs.get(('chiron', traffic)))}, "
                    f"{REFERENCE} {_told(costs.get((REFERENCE, traffic)))}",
                )
            )
    return tuple(found)


def _told(cost: float | None) -> str:
    return number(cost, ".2f") or "none"


HYSTERESIS = Experiment(
    NAME,
    "Hysteresis",
    "How often each policy scales under constant, bursty and wavy traffic, and how often it takes back "
    "within one load time what it did.",
    cases,
    tell,
)
