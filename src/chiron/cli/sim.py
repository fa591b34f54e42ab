"""The `chiron sim` commands and their options; what they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Simulate a cluster: the services' policies on the engine model.", no_args_is_help=True
)

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="What is served on what.")]
PolicyName = Annotated[
    str | None,
    typer.Option("--policy", help="chiron, chiron-paper, llumnix, fixed, …; none: the scenario's."),
]
Autoscaler = Annotated[
    str | None, typer.Option(metavar="NAME|module:Class", help="In place of the policy's own.")
]
Dispatcher = Annotated[
    str | None, typer.Option(metavar="NAME|module:Class", help="In place of the policy's own.")
]
Local = Annotated[
    str | None,
    typer.Option(metavar="NAME|static|module:Class", help="In place of the policy's own; static: none."),
]
Seed = Annotated[int | None, typer.Option(min=0, help="None: the scenario's.")]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there; `-`: to stdout.")
]
PlotFolder = Annotated[
    Path | None, typer.Option("--plots", metavar="FOLDER", help="Write plots there as PNG and SVG.")
]
ShowProgress = Annotated[
    bool, typer.Option("--progress/--no-progress", help="Progress on stderr, on a terminal.")
]


@app.command()
def run(
    scenario: ScenarioFile,
    policy: PolicyName = None,
    autoscaler: Autoscaler = None,
    dispatcher: Dispatcher = None,
    local: Local = None,
    seed: Seed = None,
    json_file: JsonFile = None,
    plots: PlotFolder = None,
    progress: ShowProgress = True,
) -> None:
    """Simulate one scenario under one policy."""
    from chiron.cli.sim_work import Output, PolicyOptions, guarded, run_scenario

    options = PolicyOptions(policy, autoscaler, dispatcher, local)
    guarded(lambda: run_scenario(scenario, options, seed, Output(json_file, plots, progress)))


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A recorded trace.")],
    trace_format: Annotated[
        str, typer.Option("--format", metavar="azure|burstgpt|mooncake|sharegpt", help="How it is written.")
    ],
    rate: Annotated[
        float | None, typer.Option(help="Scale to so many requests per second; none: as recorded.")
    ] = None,
    scaling: Annotated[
        str, typer.Option(help="multiply: over the same time; compress: the same requests in less time.")
    ] = "multiply",
    limit: Annotated[int, typer.Option(min=0, help="Use the first so many requests; 0: all.")] = 0,
    strict: Annotated[
        bool,
        typer.Option("--strict/--lenient", help="A malformed row is an error, or reported and left out."),
    ] = False,
    profile: Annotated[str, typer.Option(help="Model and GPUs of an instance.")] = "llama3-8b@a100",
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and output, in tokens; none: the profile's.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster.")] = 7,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 8,
    instances: Annotated[int, typer.Option(min=0, help="Instances that are ready at the start.")] = 1,
    slo_ttft: Annotated[float, typer.Option(help="Time to first token, in milliseconds.")] = 10_000.0,
    slo_itl: Annotated[float, typer.Option(help="Time between tokens, in milliseconds.")] = 200.0,
    deadline: Annotated[
        float | None, typer.Option(help="Replay as batch requests with so many seconds each.")
    ] = None,
    policy: PolicyName = None,
    autoscaler: Autoscaler = None,
    dispatcher: Dispatcher = None,
    local: Local = None,
    seed: Seed = None,
    json_file: JsonFile = None,
    plots: PlotFolder = None,
    progress: ShowProgress = True,
) -> None:
    """Simulate the requests of a recorded trace."""
    from chiron.cli.sim_work import Output, PolicyOptions, ReplayOptions, guarded, run_replay

    options = ReplayOptions(
        trace=trace,
        trace_format=trace_format,
        rate_per_s=rate,
        scaling=scaling,
        limit=limit,
        strict=strict,
        profile=profile,
        max_context_tokens=max_context,
        nodes=nodes,
        gpus=gpus,
        instances=instances,
        slo_ttft_ms=slo_ttft,
        slo_itl_ms=slo_itl,
        deadline_in_s=deadline,
    )
    choice = PolicyOptions(policy, autoscaler, dispatcher, local)
    guarded(lambda: run_replay(options, choice, seed, Output(json_file, plots, progress)))


@app.command()
def compare(
    scenario: ScenarioFile,
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
    json_file: JsonFile = None,
    plots: PlotFolder = None,
    progress: ShowProgress = True,
) -> None:
    """Simulate one scenario under several policies, on the same workloads."""
    from chiron.cli.sim_work import CompareOptions, Output, guarded, run_compare

    options = CompareOptions(scenario, tuple(policies.split(",")), seeds, first_seed, jobs, ceiling)
    guarded(lambda: run_compare(options, Output(json_file, plots, progress)))
