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
