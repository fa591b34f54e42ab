"""What each of the two autoscalers adds: neither, the local one, the global one, both; and single parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.ablation_parts import PART, part_cases, parts_table
from chiron.sim.paper.experiments.loads import interactive
from chiron.sim.paper.experiments.rate_tables import again, attainment, gpu_hours, having, ratio, values
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
from chiron.sim.paper.workloads import GPUS_PER_RATE, model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Backlog, Traffic

NAME = "ablation"
NEITHER, LOCAL, GLOBAL, BOTH = "neither", "local only", "global only", "both"
VARIANTS: Mapping[str, PolicyChoice] = {
    NEITHER: PolicyChoice("llumnix+preempting"),
    LOCAL: PolicyChoice("llumnix+preempting", local="model"),
    GLOBAL: PolicyChoice("chiron-static"),
    BOTH: PolicyChoice("chiron"),
}
"""All of them have Chiron's dispatch, queues and preemption, so that nothing but scaling differs."""
PUBLISHED = (0.30, 0.60)
"""What each autoscaler contributes, least and most."""


def scenarios(*, quick: bool) -> tuple[Scenario, ...]:
    """W_A, and W_B with a backlog: the traffic goes on beyond its deadline."""
    rate, requests = (50.0, 10_000) if quick else (50.0, 40_000)
    backlog = Backlog(
        model="8b",
        requests=requests,
        arrive_s=250.0 if quick else 900.0,
        deadline_in_s=900.0 if quick else 3600.0,
    )
    mixed = on_a100s(
        f"W_B 8b {rate:g} per s + {requests:,}",
        [model("8b", GPUS_PER_RATE["8b"] * rate)],
        traffic=[Traffic(model="8b", rate_per_s=rate)],
        backlogs=[backlog],
        duration_s=1200.0 if quick else 5400.0,
        warmup_s=200.0 if quick else 600.0,
    )
    return interactive(quick=quick), mixed


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every variant on both workloads, and every part on its own, on and off."""
    found = [
        Case(NAME, {"workload": scenario.name, "variant": variant}, scenario, choice, seed)
        for scenario in scenarios(quick=size.quick)
        for variant, choice in VARIANTS.items()
        for seed in size.reported(quick=1, full=2)
    ]
    return found + part_cases(NAME, size)


def efficiency(figures: Figures) -> float:
    """Requests that attained their SLO, per GPU-hour."""
    found: float = figures["throughput"]["requests_per_gpu_hour"]
    return found * (attainment(figures) or 0.0)


def tell(outcomes: Sequence[Outcome]) -> Section:
    """The four variants, what each autoscaler adds, and what single parts do."""
    parts = [each for each in outcomes if PART in each.case.labels]
    outcomes = [each for each in outcomes if PART not in each.case.labels]
    rows = [
        row(
            workload,
            variant,
            share(mean(attainment(each.figures) for each in mine)),
            f"{sum(each.figures['attains'] for each in mine)} of {len(mine)}",
            spread(gpu_hours(each.figures) for each in mine),
            spread((ratio(each.figures) for each in mine), ".3f"),
            spread((efficiency(each.figures) for each in mine), ",.0f"),
            command=again(mine),
        )
        for (workload, variant), mine in grouped(outcomes, "workload", "variant").items()
    ]
    columns = (
        "workload",
        "autoscalers",
        "attainment",
        "seeds that attain",
        "GPU-hours",
        "× oracle-lb",
        "attaining requests per GPU-hour",
    )
    added = [
        row(str(workload), *(number(each and 100 * each, "+.1f") for each in contributions(mine)))
        for workload in values(outcomes, "workload")
        for mine in [having(outcomes, "workload", workload)]
    ]
    shares = (
        "workload",
        "local alone over neither, %",
        "global alone over neither, %",
        "both over neither, %",
        "local's share of the gain, %",
        "global's share of the gain, %",
    )
    return Section(
        ABLATION.title,
        (
            expected("the local and the global autoscaler contribute 30–60 % each."),
            "Neither is Llumnix's scaling at its published thresholds with a static batch size of 256; all "
            "four have Chiron's dispatch, queues and preemption. The measure is requests that attained per "
            "GPU-hour. An autoscaler's share of the gain is the mean of what it adds when it comes first and "
            "when it comes second (Shapley), over what both add.",
            "Below them single parts of the global autoscaler are switched off one at a time, each on a "
            "workload on which it is meant to help, so that these rows say nothing of other workloads.",
        ),
        (
            table("The four variants", columns, rows),
            table("What each adds to attaining requests per GPU-hour", shares, added),
            parts_table(parts),
        ),
        (_plot(outcomes),),
        _findings(outcomes),
    )


def contributions(outcomes: Sequence[Outcome]) -> tuple[float | None, ...]:
    """Of one workload: local alone, global alone and both over neither, and the shares of the gain.

    None where a variant is missing, or where both add nothing that could be shared.
    """
    found = each_by(grouped(outcomes, "variant"), lambda each: efficiency(each.figures))
    if {(name,) for name in VARIANTS} - found.keys():
        return (None,) * 5
    neither, local, alone, both = (found[name,] for name in (NEITHER, LOCAL, GLOBAL, BOTH))
    over = [value / neither - 1 if neither else None for value in (local, alone, both)]
    gain = both - neither
    if gain <= 0:
        return (*over, None, None)
    return (
        *over,
        ((local - neither) + (both - alone)) / 2 / gain,
        ((alone - neither) + (both - local)) / 2 / gain,
    )


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    found = []
    for workload in values(outcomes, "workload"):
        mine = contributions(having(outcomes, "workload", workload))
        for name, alone, part in (("local", mine[0], mine[3]), ("global", mine[1], mine[4])):
            over = "" if alone is None else f"; alone {alone:+.0%} over neither"
            found.append(
                Finding(
                    f"the {name} autoscaler's part of the gain, {workload}",
                    f"{PUBLISHED[0]:.0%} to {PUBLISHED[1]:.0%}",
                    "no gain to share" if part is None else f"{part:.0%} of what both add{over}",
                    "no figure" if part is None else "met" if _within(part) else "not met",
                    "" if part is None or _within(part) else _why(name, part),
                )
            )
    return tuple(found)


def _within(part: float) -> bool:
    return PUBLISHED[0] <= part <= PUBLISHED[1]


def _why(name: str, part: float) -> str:
    other = "global" if name == "local" else "local"
    return f"{'more' if part > PUBLISHED[1] else 'less'} than published: the {other} one adds {1 - part:.0%}"


def _plot(outcomes: Sequence[Outcome]) -> Plot:
    workloads = values(outcomes, "workload")
    series = tuple(
        Series(
            variant,
            tuple(
                point(float(place), (efficiency(each.figures) for each in having(mine, "workload", workload)))
                for place, workload in enumerate(workloads)
            ),
        )
        for (variant,), mine in grouped(outcomes, "variant").items()
    )
    axis = "attaining requests per GPU-hour"
    return Plot(NAME, "Ablation", Axis("", ticks=tuple(workloads)), Axis(axis, least=0.0), series, "bars")


ABLATION = Experiment(
    NAME,
    "Ablation",
    "Both autoscalers, each of them alone, and neither: interactive requests (W_A), and a backlog (W_B).",
    cases,
    tell,
)
