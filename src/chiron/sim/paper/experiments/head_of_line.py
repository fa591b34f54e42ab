"""Head-of-line blocking: interactive requests behind long batch work, by queue discipline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chiron.policy.words import Role
from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import again
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
from chiron.sim.paper.workloads import model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Backlog, Traffic

NAME = "head-of-line"
DISCIPLINES = ("fcfs", "edf", "mlfq")
SHARED, APART = "one queue for both", "a queue for each class"
INSTANCES = 4
FLEET = PolicyChoice("chiron-static", autoscaler="fixed")
"""A fleet that stays, with a static batch size: only the queues differ."""


def scenario_of(queues: str, discipline: str, *, quick: bool) -> Scenario:
    """Interactive requests, and batch requests of 1,500 tokens that come at once and fill every slot."""
    duration_s = 600.0 if quick else 1800.0
    scenario = on_a100s(
        f"long batch work, {discipline}, {queues}",
        [replace(model("8b", 1), initial={Role.MIXED: INSTANCES}, min_instances=INSTANCES)],
        traffic=[Traffic(model="8b", rate_per_s=30.0)],
        backlogs=[
            Backlog(
                model="8b",
                requests=4000 if quick else 12_000,
                arrive_s=150.0,
                deadline_in_s=3600.0,
                lengths="lognormal",
                prompt_mean=300.0,
                output_mean=1500.0,
                sigma=0.7,
            )
        ],
        duration_s=duration_s,
        warmup_s=100.0,
    )
    shared = queues == SHARED
    settings = replace(
        scenario.settings,
        discipline=discipline,
        queues=QueueSettings(shared=shared, preemption=not shared),
        horizon_s=duration_s + 1200.0,
    )
    return replace(scenario, settings=settings)


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every discipline with one queue and with two."""
    return [
        Case(
            NAME,
            {"queues": queues, "discipline": discipline},
            scenario_of(queues, discipline, quick=size.quick),
            FLEET,
            seed,
        )
        for queues in (SHARED, APART)
        for discipline in DISCIPLINES
        for seed in size.reported(quick=1, full=2)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Interactive TTFT and attainment, and what became of the batch work."""
    groups = grouped(outcomes, "queues", "discipline")
    rows = [
        row(
            queues,
            discipline,
            *(spread((_seconds(each, name) for each in mine), ",.2f") for name in ("p50", "p90", "p99")),
            share(mean(each.figures["slo_attainment"]["interactive"] for each in mine)),
            share(mean(each.figures["slo_attainment"]["batch"] for each in mine)),
            spread((each.figures["preemptions"] for each in mine), ",.0f"),
            command=again(mine),
        )
        for (queues, discipline), mine in groups.items()
    ]
    columns = (
        "queues",
        "discipline",
        "interactive TTFT p50, s",
        "p90, s",
        "p99, s",
        "interactive attainment",
        "batch attainment",
        "preemptions",
    )
    return Section(
        HEAD_OF_LINE.title,
        (
            expected(
                "first come first served makes interactive requests wait behind batch work that came before; "
                "an order by deadline does not, and one by service attained does so only for work that has "
                "been served some."
            ),
            f"{INSTANCES} instances that stay, with 256 slots each. With one queue for both, whoever is "
            "first waits for room, everybody behind waits too, and running batch requests keep their slots. "
            "With a queue for each class interactive requests go first and batch requests give way.",
        ),
        (table("Interactive requests beside long batch work", columns, rows),),
        (_plot(outcomes),),
        _findings(outcomes),
    )


def _seconds(outcome: Outcome, name: str) -> float | None:
    found: float | None = outcome.figures["ttft_ms"][name]
    return None if found is None else found / 1e3


def _plot(outcomes: Sequence[Outcome]) -> Plot:
    series = tuple(
        Series(
            queues,
            tuple(
                point(float(DISCIPLINES.index(discipline)), (_seconds(each, "p99") for each in found))
                for (discipline,), found in grouped(mine, "discipline").items()
            ),
        )
        for (queues,), mine in grouped(outcomes, "queues").items()
    )
    axes = Axis("discipline", ticks=DISCIPLINES), Axis("interactive TTFT p99, s", log=True)
    return Plot(NAME, "Interactive TTFT beside long batch work", *axes, series, "bars")


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    p99_s = each_by(grouped(outcomes, "queues", "discipline"), lambda each: _seconds(each, "p99"))
    blocked, free = p99_s.get((SHARED, "fcfs")), p99_s.get((APART, "edf"))
    if blocked is None or free is None:
        return ()
    return (
        Finding(
            "a queue for each class, by deadline, ends head-of-line blocking",
            "a shorter interactive TTFT p99 than with one queue, first come first served",
            f"{free:.2f} s instead of {blocked:.2f} s",
            "met" if free < blocked else "not met",
        ),
    )


HEAD_OF_LINE = Experiment(
    NAME,
    "Head-of-line blocking",
    "Interactive TTFT under fcfs, edf and mlfq while long batch requests fill every slot, with one queue for "
    "both classes and with one for each.",
    cases,
    tell,
)
