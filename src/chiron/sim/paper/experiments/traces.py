"""Production traces: Azure's conversations and code, recorded in 2023 and scaled to the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.compared import COMPARED
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import sweep_plots, sweep_tables
from chiron.sim.paper.goal_rows import CODE, CONVERSATIONS, trace_file
from chiron.sim.paper.sections import Section
from chiron.sim.paper.workloads import model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Replay

NAME = "traces"
QUICKLY = ("chiron", "llumnix-migration", "utilization", "dynamo-like")
"""Policies of a quick run."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace on the 8B model."""

    label: str
    file: str
    rate_per_s: float
    gpus: int
    """Ready at the start."""


CONVERSATION = Trace("conversations", CONVERSATIONS, 50, 5)
CODING = Trace("code", CODE, 50, 5)
LARGE = Trace("conversations", CONVERSATIONS, 300, 30)
"""Needs most of the 50 GPUs."""


def scenario_of(trace: Trace, traces: Path | None, *, quick: bool) -> Scenario:
    """The recorded hour at the trace's rate; quickly, at a third of it."""
    rate = trace.rate_per_s / 3 if quick else trace.rate_per_s
    gpus = max(1, round(trace.gpus / 3)) if quick else trace.gpus
    return on_a100s(
        f"Azure {trace.label} {rate:.3g} per s",
        [model("8b", gpus)],
        replays=[
            Replay(
                model="8b",
                file=trace_file(traces, trace.file),
                format="azure",
                rate_per_s=rate,
            )
        ],
        duration_s=3600,
    )


def cases(size: Size, traces: Path | None) -> Sequence[Case]:
    """Each trace under every policy, and a large one under some."""
    points: list[tuple[Trace, Sequence[str]]] = [
        (trace, QUICKLY if size.quick else COMPARED) for trace in (CONVERSATION, CODING)
    ]
    if not size.quick:
        points.append((LARGE, ("chiron",)))
    return [
        Case(
            NAME,
            {"mix": trace.label, "rate": scenario.name},
            scenario,
            PolicyChoice(policy),
            seed,
            late=trace is LARGE,
        )
        for trace, policies in points
        for scenario in [scenario_of(trace, traces, quick=size.quick)]
        for policy in policies
        for seed in size.reported(quick=1, full=1)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """A table and three plots for each trace."""
    return Section(
        TRACES.title,
        (
            "An hour of requests with their recorded times and lengths, multiplied to the rate named: "
            "copies of a request are moved by up to 30 s. Prompts are long (a mean of about 1,000 tokens "
            "in conversations, 2,000 in code), outputs short. Seeds differ in the copies and in what the "
            "simulation draws.",
        ),
        sweep_tables(outcomes, "rate", "trace"),
        sweep_plots(outcomes, NAME, "rate", "trace"),
    )


TRACES = Experiment(
    NAME,
    "Production traces",
    "Azure's conversation and code traces of 2023, scaled to the cluster: load that comes in waves, and "
    "lengths that nobody drew from a formula.",
    cases,
    tell,
)
