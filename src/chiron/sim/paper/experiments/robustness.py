"""Robustness: the world does what policies were not told, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import (
    Figure,
    again,
    attainment,
    gpu_hours,
    having,
    ratio,
    values,
)
from chiron.sim.paper.sections import Finding, Row, Section, mean, row, share, spread, table
from chiron.sim.paper.workloads import model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Backlog, Traffic
from chiron.sim.variations import ROBUSTNESS, VARIATIONS, vary

NAME = "robustness"
PLAIN = "as told"
MOST_LOST = 0.02
"""Of attainment, in shares of 1."""
MOST_MORE = 0.15
"""GPU-hours over those of the plain run, each over its own lower bound."""


def scenarios(*, quick: bool) -> dict[str, Scenario]:
    """Interactive traffic that swings, and traffic with a backlog."""
    rate, length_s, warmup_s = (30.0, 1200.0, 240.0) if quick else (40.0, 3600.0, 600.0)
    # A backlog is due an hour after it arrives.
    whole_s = length_s if quick else 5400.0
    backlog, arrive_s, due_s = (8_000, 300.0, 800.0) if quick else (40_000, 900.0, 3600.0)
    swinging = Traffic(
        model="8b",
        rate_per_s=rate,
        shape="diurnal",
        swing=0.4,
        period_s=length_s / 2,
        peak_s=length_s / 4,
    )
    return {
        "W_A": on_a100s(
            f"W_A 8b {rate:g} per s, swinging",
            [model("8b", rate / 15)],
            traffic=[swinging],
            duration_s=length_s,
            warmup_s=warmup_s,
        ),
        "W_B": on_a100s(
            f"W_B 8b {rate / 2:g} per s + {backlog:,}",
            [model("8b", rate / 30)],
            traffic=[Traffic(model="8b", rate_per_s=rate / 2)],
            backlogs=[Backlog(model="8b", requests=backlog, arrive_s=arrive_s, deadline_in_s=due_s)],
            duration_s=whole_s,
            warmup_s=warmup_s,
        ),
    }


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every variation of both workloads."""
    return [
        Case(
            NAME,
            {"workload": name, "variation": variation},
            scenario if variation == PLAIN else vary(scenario, variation),
            PolicyChoice("chiron"),
            seed,
        )
        for name, scenario in scenarios(quick=size.quick).items()
        for variation in (PLAIN, *ROBUSTNESS)
        for seed in size.reported(quick=1, full=2)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """A table over both workloads, and a finding for each variation of each."""
    rows: list[Row] = []
    findings: list[Finding] = []
    for name in values(outcomes, "workload"):
        mine = having(outcomes, "workload", name)
        plain = having(mine, "variation", PLAIN)
        for variation in values(mine, "variation"):
            varied = having(mine, "variation", variation)
            gained, more, plainly = (
                _gained(plain, varied),
                _more(plain, varied, ratio),
                _more(plain, varied, gpu_hours),
            )
            about = VARIATIONS[variation].about if variation in VARIATIONS else "the scenario itself"
            rows.append(
                row(
                    str(name),
                    str(variation),
                    about,
                    share(mean(attainment(each.figures) for each in varied)),
                    None if gained is None else f"{100 * gained:+.2f}",
                    spread(gpu_hours(each.figures) for each in varied),
                    None if plainly is None else f"{plainly:+.1%}",
                    spread((ratio(each.figures) for each in varied), ".3f"),
                    None if more is None else f"{more:+.1%}",
                    command=again(varied),
                )
            )
            if variation != PLAIN and gained is not None and more is not None:
                findings.append(_finding(f"{name}, {variation}", gained, more, plainly))
    columns = (
        "workload",
        "variation",
        "what it does",
        "attainment",
        "points against plain",
        "GPU-hours",
        "against plain",
        "× oracle-lb",
        "against plain",
    )
    return Section(
        ROBUSTNESS_TABLE.title,
        (
            "Policies keep the profiles, load times and SLOs that they were told; the world does "
            "otherwise. Slower steps and longer answers are more work for anybody, so that the limit on "
            "GPU-hours is on those over the lower bound of what was truly served; the plain figures stand "
            "beside them.",
        ),
        (table("Chiron under each variation", columns, rows),) if rows else (),
        (),
        tuple(findings),
    )


def _finding(name: str, gained: float, more: float, plainly: float | None) -> Finding:
    met = gained >= -MOST_LOST and more <= MOST_MORE
    return Finding(
        f"robustness: {name}",
        f"attainment loses at most {100 * MOST_LOST:g} points, GPU-hours over the bound at most "
        f"{MOST_MORE:.0%}",
        f"{100 * gained:+.2f} points, {more:+.1%}",
        "met" if met else "not met",
        "" if plainly is None else f"GPU-hours by themselves: {plainly:+.1%}",
    )


def _gained(plain: Sequence[Outcome], varied: Sequence[Outcome]) -> float | None:
    before, after = (mean(attainment(each.figures) for each in side) for side in (plain, varied))
    return None if before is None or after is None else after - before


def _more(plain: Sequence[Outcome], varied: Sequence[Outcome], figure: Figure) -> float | None:
    before, after = (mean(figure(each.figures) for each in side) for side in (plain, varied))
    return None if not before or after is None else after / before - 1


ROBUSTNESS_TABLE = Experiment(
    NAME,
    "Robustness",
    "Step times 30 % off, lengths that drift, loads that take three times as long, reports 5 s late: what "
    "is lost when the world is not as policies were told.",
    cases,
    tell,
)
