"""Options that the `chiron sim` commands share, as dataclasses that stand for blocks of parameters."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True, slots=True)
class PartOptions:
    """Parts that take the place of the policy's own."""

    autoscaler: Annotated[
        str | None, typer.Option(metavar="NAME|module:Class", help="In place of the policy's own.")
    ] = None
    dispatcher: Annotated[
        str | None, typer.Option(metavar="NAME|module:Class", help="In place of the policy's own.")
    ] = None
    local: Annotated[
        str | None,
        typer.Option(metavar="NAME|static|module:Class", help="In place of the policy's own; static: none."),
    ] = None
    preemption: Annotated[
        bool | None,
        typer.Option(
            "--preemption/--no-preemption",
            help="Batch requests give way to interactive ones; none: as the policy says.",
        ),
    ] = None
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the autoscaler, or the batch_size or step_token_budget with which instances "
            "start; may be repeated.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class PolicyOptions(PartOptions):
    """Who decides, as far as the command line says; the rest is the scenario's."""

    policy: Annotated[
        str | None, typer.Option(help="chiron, chiron-paper, llumnix, fixed, …; none: the scenario's.")
    ] = None


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What of a recorded trace is served, and on what; or of a router's recording."""

    rate: Annotated[
        float | None, typer.Option(help="Scale to so many requests per second; none: as recorded.")
    ] = None
    scaling: Annotated[
        str, typer.Option(help="multiply: over the same time; compress: the same requests in less time.")
    ] = "multiply"
    limit: Annotated[int, typer.Option(min=0, help="Use the first so many requests; 0: all.")] = 0
    strict: Annotated[
        bool,
        typer.Option("--strict/--lenient", help="A malformed row is an error, or reported and left out."),
    ] = False
    profile: Annotated[
        str | None,
        typer.Option(
            help="Model and GPUs of an instance, by name or by file; none: llama3-8b@a100. Of a router's "
            "recording MODEL=PROFILE,…, where the model's engine names none."
        ),
    ] = None
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Of a router's recording: the cluster then, as `chiron status --watch --json` printed it.",
        ),
    ] = None
    live_decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Likewise its decisions, as `chiron explain --since TIME --json` prints them.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Likewise its configuration; none: the defaults of [controller]."),
    ] = None
    max_context: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and output, in tokens; none: the profile's.")
    ] = None
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the cluster.")] = 7
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 8
    price: Annotated[
        float | None, typer.Option(help="Of a GPU-hour, in any currency; none: gpu_cost is null.")
    ] = None
    instances: Annotated[int, typer.Option(min=0, help="Instances that are ready at the start.")] = 1
    deadline: Annotated[
        float | None, typer.Option(help="Replay as batch requests with so many seconds each.")
    ] = None


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """What `chiron sim plan` is asked."""

    growth: Annotated[
        str, typer.Option(metavar="FACTOR,…", help="Times the load; the curve is about the first.")
    ] = "1"
    slo_ttft: Annotated[
        str | None,
        typer.Option(
            metavar="MS,…",
            help="Time to first token, in milliseconds, of all models; the curve is about the first, "
            "each goes with each --slo-itl. None: the scenario's; of a trace 10000.",
        ),
    ] = None
    slo_itl: Annotated[
        str | None,
        typer.Option(
            metavar="MS,…",
            help="Time between tokens, in milliseconds, likewise. None: the scenario's; of a trace 200.",
        ),
    ] = None
    goal: Annotated[
        float,
        typer.Option(help="Share of the interactive requests that must attain; deadlines must all be met."),
    ] = 0.99
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Workloads on each of which it has to attain; none: 3, and 5 with --tune."),
    ] = None
    first_seed: Annotated[int | None, typer.Option(min=0, help="None: the scenario's; with --tune 101.")] = (
        None
    )
    warmup: Annotated[
        float | None,
        typer.Option(
            min=0, help="Requests of the first so many seconds count in no figure; none: the scenario's."
        ),
    ] = None
    max_gpus: Annotated[
        int | None, typer.Option(min=1, help="Most GPUs that are tried; none: the scenario's budget or GPUs.")
    ] = None
    candidates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=PROFILE,…",
            help="Profiles among which the cheapest mix is looked for: by name, MODEL@TYPE, or file; their "
            "types are [[cluster.gpus]] with prices. May be repeated.",
        ),
    ] = None
    budgets: Annotated[
        str, typer.Option(metavar="GPUS,…", help="GPU budgets that the curve is to have in any case.")
    ] = ""
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Instead, find the policy's settings that serve the workload best on these GPUs, searched "
            "on other seeds than are reported.",
        ),
    ] = False
    knob: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,…",
            help="With --tune: a setting and the values to try; may be repeated. None: all of them, from a "
            "quarter to four times what they are.",
        ),
    ] = None
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where the findings go."""

    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there; `-`: to stdout.")
    ] = None
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write plots there as PNG and SVG.")
    ] = None
    progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Progress on stderr, on a terminal.")
    ] = True

    @property
    def json_on_stdout(self) -> bool:
        """The figures take stdout, so that nothing else may."""
        return self.json_file is not None and str(self.json_file) == "-"


@dataclass(frozen=True, slots=True)
class RunOutputOptions(OutputOptions):
    """Where the findings of one run go."""

    decisions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write what the global autoscaler decides there, with reasons: JSON Lines."
        ),
    ] = None


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of each dataclass among its parameters in the place of that parameter.

    Every field needs a default, and an annotation as a typer parameter has it.
    """
    signature = inspect.signature(command, eval_str=True)
    blocks: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name not in blocks
    ]
    for block in blocks.values():
        hints = typing.get_type_hints(block, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in dataclasses.fields(block)
        ]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: block(**{field.name: given.pop(field.name) for field in dataclasses.fields(block)})
            for name, block in blocks.items()
        }
        command(**given, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
