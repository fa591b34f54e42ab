"""Every baseline once more over our dispatcher, queues and preemption: what scaling alone is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.compared import BASELINES, OURS
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import COLUMNS, by_policy, having, policy_row, values
from chiron.sim.paper.sections import Row, Section, table
from chiron.sim.paper.workloads import GPUS_PER_RATE, model, on_a100s
from chiron.sim.policies import POLICIES, PREEMPTING, PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Backlog, Traffic

NAME = "second-table"
QUICKLY = ("llumnix", "utilization", "in-flight")
"""Baselines of a quick run."""


def policies(*, quick: bool = False) -> tuple[str, ...]:
    """Ours, and of each baseline its own queues and ours; baselines that differ in queues alone share one."""
    found = [OURS]
    for name in QUICKLY if quick else BASELINES:
        found.append(name)
        if name + PREEMPTING in POLICIES:
            found.append(name + PREEMPTING)
    return tuple(found)


def scenarios(*, quick: bool) -> tuple[Scenario, ...]:
    """W_A and W_B."""
    rate, length_s, warmup_s = (40.0, 720.0, 240.0) if quick else (80.0, 1800.0, 600.0)
    beside, backlog, whole_s = (20.0, 15_000, 1800.0) if quick else (40.0, 40_000, 3600.0)
    return (
        on_a100s(
            f"W_A 8b {rate:g} per s",
            [model("8b", GPUS_PER_RATE["8b"] * rate)],
            traffic=[Traffic(model="8b", rate_per_s=rate)],
            duration_s=length_s,
            warmup_s=warmup_s,
        ),
        on_a100s(
            f"W_B 8b {beside:g} per s + {backlog:,}",
            [model("8b", GPUS_PER_RATE["8b"] * beside)],
            traffic=[Traffic(model="8b", rate_per_s=beside)],
            backlogs=[
                Backlog(model="8b", requests=backlog, arrive_s=whole_s / 6, deadline_in_s=whole_s * 2 / 3)
            ],
            duration_s=whole_s,
            warmup_s=warmup_s,
        ),
    )


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Both workloads under every policy."""
    return [
        Case(NAME, {"workload": scenario.name}, scenario, PolicyChoice(policy), seed)
        for scenario in scenarios(quick=size.quick)
        for policy in policies(quick=size.quick)
        for seed in size.reported(quick=1, full=1)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """One table."""
    rows: list[Row] = [
        policy_row(str(workload), policy, mine)
        for workload in values(outcomes, "workload")
        for policy, mine in by_policy(having(outcomes, "workload", workload)).items()
    ]
    return Section(
        SECOND_TABLE.title,
        (
            f"NAME{PREEMPTING} is the scaling of NAME alone: requests are queued, dispatched and preempted "
            "as Chiron does it, at a static batch size. What is left between such a row and ours is worth "
            "of autoscaling; what a baseline gains by it was owed to queues.",
        ),
        (table("Each scaling over its own queues and over Chiron's", ("workload", *COLUMNS), rows),)
        if rows
        else (),
    )


SECOND_TABLE = Experiment(
    NAME,
    "Baselines with our dispatcher and preemption",
    "Every baseline's scaling once more over Chiron's dispatcher, queues and preemption, so that what is "
    "gained is put down to autoscaling or to queues.",
    cases,
    tell,
)
