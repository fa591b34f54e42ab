"""The `chiron sim` commands and their options; what they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from chiron.cli.sim_options import (
    OutputOptions,
    PartOptions,
    PolicyOptions,
    RunOutputOptions,
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
    policy: PolicyOptions,
    output: RunOutputOptions,
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
    profile: Annotated[
        str | None,
        typer.Option(
            help="Model and GPUs of an instance; none: llama3-8b@a100. Of a router's recording "
            "MODEL=PROFILE,…, where the model's engine names none."
        ),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of a router's recording: the cluster then, as `chiron status --watch --json` printed it.",
        ),
    ] = None,
    live_decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Likewise its decisions, as `chiron explain --since TIME --json` prints them.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Likewise its configuration; none: the defaults of [controller]."),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and output, in tokens; none: the profile's.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster.")] = 7,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 8,
    price: Annotated[
        float | None, typer.Option(help="Of a GPU-hour, in any currency; none: gpu_cost is null.")
    ] = None,
    instances: Annotated[int, typer.Option(min=0, help="Instances that are ready at the start.")] = 1,
    slo_ttft: Annotated[float, typer.Option(help="Time to first token, in milliseconds.")] = 10_000.0,
    slo_itl: Annotated[float, typer.Option(help="Time between tokens, in milliseconds.")] = 200.0,
    deadline: Annotated[
        float | None, typer.Option(help="Replay as batch requests with so many seconds each.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Simulate the requests of a recorded trace."""
    from chiron.cli.sim_recorded import FORMAT, RecordedOptions, replay_recorded
    from chiron.cli.sim_work import ReplayOptions, guarded, run_replay

    if trace_format == FORMAT:
        recorded = RecordedOptions(trace, cluster, live_decisions, config, profile or "", strict)
        guarded(lambda: replay_recorded(recorded, policy, seed, output))
        return
    options = ReplayOptions(
        trace=trace,
        trace_format=trace_format,
        rate_per_s=rate,
        scaling=scaling,
        limit=limit,
        strict=strict,
        profile=profile or "llama3-8b@a100",
        max_context_tokens=max_context,
        nodes=nodes,
        gpus=gpus,
        price=price,
        instances=instances,
        slo_ttft_ms=slo_ttft,
        slo_itl_ms=slo_itl,
        deadline_in_s=deadline,
    )
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
