"""The options that every command has which gives a key its terms."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

_LIMITS, _DEFAULTS = "Limits, below the tenant's", "Where a request says nothing"


def _declared(
    *,
    expires: Annotated[
        str, typer.Option("--expires", help="When it ends: a time from now as 90d or 12h, or a date (UTC).")
    ] = "",
    requests_per_s: Annotated[
        float | None,
        typer.Option("--requests-per-s", rich_help_panel=_LIMITS, help="Requests a second; 0: no limit."),
    ] = None,
    tokens_per_min: Annotated[
        int | None,
        typer.Option(
            "--tokens-per-min",
            min=0,
            rich_help_panel=_LIMITS,
            help="Prompt and output tokens a minute; 0: no limit.",
        ),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option("--concurrent", min=0, rich_help_panel=_LIMITS, help="Requests at once; 0: no limit."),
    ] = None,
    allow_model: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-model",
            rich_help_panel=_LIMITS,
            help="A model that it may use; may be repeated; *: all.",
        ),
    ] = None,
    allow_class: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-class", rich_help_panel=_LIMITS, help="interactive or batch: a class that it may use."
        ),
    ] = None,
    most_urgent_priority: Annotated[
        int | None,
        typer.Option(
            "--most-urgent-priority", rich_help_panel=_LIMITS, help="The lowest priority it may ask for."
        ),
    ] = None,
    request_class: Annotated[
        str, typer.Option("--class", rich_help_panel=_DEFAULTS, help="interactive or batch.")
    ] = "",
    priority: Annotated[
        int | None, typer.Option("--priority", rich_help_panel=_DEFAULTS, help="A lower value goes first.")
    ] = None,
    ttft_ms: Annotated[
        float | None, typer.Option("--ttft-ms", rich_help_panel=_DEFAULTS, help="Time to first token.")
    ] = None,
    itl_ms: Annotated[
        float | None, typer.Option("--itl-ms", rich_help_panel=_DEFAULTS, help="Time between tokens.")
    ] = None,
    deadline: Annotated[
        str,
        typer.Option(
            "--deadline",
            rich_help_panel=_DEFAULTS,
            help="Time until the whole result is there, as 90s or 2h.",
        ),
    ] = "",
    refuse_if_late: Annotated[
        bool | None,
        typer.Option(
            "--refuse-if-late/--no-refuse-if-late",
            rich_help_panel=_DEFAULTS,
            help="Refuse at once what would wait for longer than its SLO allows.",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens", min=0, rich_help_panel=_DEFAULTS, help="Most output tokens; 0: says nothing."
        ),
    ] = None,
) -> None:
    """Is never called: typer reads the options from it, named as the fields of `KeyOptions`."""


_DECLARED = inspect.signature(_declared, eval_str=True).parameters


def with_key_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with these options in the place of its parameter `options`, which gets what they say."""
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += _DECLARED.values() if name == "options" else [parameter]

    @functools.wraps(command)
    def run(**said: Any) -> None:
        from chiron.cli.key_terms import KeyOptions

        given = {name: said.pop(name) for name in _DECLARED}
        values: dict[str, Any] = {
            **given,
            "allow_model": tuple(given["allow_model"] or ()),
            "allow_class": tuple(given["allow_class"] or ()),
        }
        command(**said, options=KeyOptions(**values))

    in_order = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
    run.__signature__ = own.replace(parameters=in_order)  # type: ignore[attr-defined]  # Read by typer.
    run.__annotations__ = {one.name: one.annotation for one in in_order}
    return run
