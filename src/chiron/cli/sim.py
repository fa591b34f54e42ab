"""The `chiron sim` commands and their options; what they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chiron.cli.sim_options import (
    OutputOptions,
    PartOptions,
    PlanOptions,
    PolicyOptions,
    RunOutputOptions,
    TraceOptions,
    expanded,
)

app = typer.Typer(
    help="Simulate a cluster: the services' policies on the engine model.", no_args_is_help=True
)

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="What is served on what.")]
Seed = Annotated[int | None, typer.Option(min=0, help="None: the scenario's.")]
Vary = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…", help="Change the scenario: steps-slower, lengths-growing, telemetry-late, …"
    ),
]


@app.command()
@expanded
def run(
    scenario: ScenarioFile,
    policy: PolicyOptions,
    output: RunOutputOptions,
    seed: Seed = None,
    vary: Vary = None,
) -> None:
    """Simulate one scenario under one policy."""
    from chiron.cli.sim_work import guarded, run_scenario

    guarded(lambda: run_scenario(scenario, policy, seed, output, vary))


@app.command()
@expanded
def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A recorded trace, or the folder of a router's recording.")
    ],
    trace_format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="azure|burstgpt|mooncake|sharegpt|chiron",
            help="How it is written; chiron: a router's recording.",
        ),
    ],
    recorded: TraceOptions,
    policy: PolicyOptions,
    output: RunOutputOptions,
    slo_ttft: Annotated[float, typer.Option(help="Time to first token, in milliseconds.")] = 10_000.0,
    slo_itl: Annotated[float, typer.Option(help="Time between tokens, in milliseconds.")] = 200.0,
    seed: Seed = None,
) -> None:
    """Simulate the requests of a recorded trace."""
    from chiron.cli.sim_recorded import FORMAT, RecordedOptions, replay_recorded
    from chiron.cli.sim_traces import ReplayOptions
    from chiron.cli.sim_work import guarded, run_replay

    if trace_format == FORMAT:
        recording = RecordedOptions.of(trace, recorded)
        guarded(lambda: replay_recorded(recording, policy, seed, output))
        return
    options = ReplayOptions.of(trace, trace_format, recorded, slo_ttft, slo_itl)
    guarded(lambda: run_replay(options, policy, seed, output))


@app.command()
@expanded
def compare(
    scenario: ScenarioFile,
    parts: PartOptions,
    output: OutputOptions,
    policies: Annotated[
        str, typer.Option(help="Names, comma-separated; fixed ones get the smallest fleet that attains.")
    ] = "chiron,llumnix,fixed",
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each policy, each on a workload of its own.")
    ] = 1,
    first_seed: Annotated[int | None, typer.Option(min=0, help="None: the scenario's.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    ceiling: Annotated[
        bool, typer.Option("--ceiling/--no-ceiling", help="Sweep the physical ceiling as well.")
    ] = True,
    vary: Vary = None,
) -> None:
    """Simulate one scenario under several policies, on the same workloads.

    With --autoscaler, --dispatcher, --local, --preemption or --set, or a scenario that has a [policy], one
    more: what `chiron sim run` with the same options runs.
    """
    from chiron.cli.sim_work import CompareOptions, guarded, run_compare

    options = CompareOptions(scenario, tuple(policies.split(",")), seeds, first_seed, jobs, ceiling, vary)
    guarded(lambda: run_compare(options, parts, output))


@app.command()
@expanded
def plan(
    workload: Annotated[
        Path,
        typer.Argument(
            metavar="SCENARIO.toml|TRACE",
            help="What is served on what; with --format a recorded trace, or a router's recording.",
        ),
    ],
    asked: PlanOptions,
    recorded: TraceOptions,
    policy: PolicyOptions,
    output: OutputOptions,
    trace_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="azure|burstgpt|mooncake|sharegpt|chiron",
            help="How the trace is written; chiron: a router's recording; none: the workload is a scenario.",
        ),
    ] = None,
    vary: Vary = None,
) -> None:
    """Find the fewest GPUs that serve a workload within its SLOs."""
    from chiron.cli.sim_plan import run_plan
    from chiron.cli.sim_work import guarded

    guarded(lambda: run_plan(workload, trace_format, asked, recorded, policy, output, vary))


@app.command()
def paper(
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Where the report, the figures and finished runs go; it is made."),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="About 5 minutes on two cores instead of an hour: one seed.")
    ] = False,
    traces: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the Azure traces; without it their runs are skipped."),
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="NAMES", help="These experiments alone, comma-separated.")
    ] = None,
    case: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Run this case of --only again, and print its figures alone."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Of every experiment; none: as many as each thinks right.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    goals_full: Annotated[
        bool,
        typer.Option("--goals-full", help="Also the goals that take longer than all the rest: many hours."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report there as Markdown.")
    ] = None,
) -> None:
    """Simulate the paper's evaluation: every experiment, and one report.

    Finished runs are kept in DIR/cache: after an interruption the same command goes on where it was.
    """
    from chiron.cli.sim_paper import PaperOptions, run_paper
    from chiron.cli.sim_work import guarded

    options = PaperOptions(out, quick, traces, only, case, seeds, jobs, goals_full, dry_run, markdown)
    guarded(lambda: run_paper(options))
