"""The commands `chiron keys` and their options."""

from __future__ import annotations

from typing import Annotated

import typer

from chiron.cli.options import CONTROLLER, Controller, Json

keys_app = typer.Typer(help="Create, change, revoke and list API keys.", no_args_is_help=True)

_LIMITS, _DEFAULTS = "Limits, below the tenant's", "Where a request says nothing"

RequestsPerS = Annotated[
    float | None, typer.Option("--requests-per-s", rich_help_panel=_LIMITS, help="Requests a second.")
]
TokensPerMin = Annotated[
    int | None,
    typer.Option(
        "--tokens-per-min", min=0, rich_help_panel=_LIMITS, help="Prompt and output tokens a minute."
    ),
]
Concurrent = Annotated[
    int | None, typer.Option("--concurrent", min=0, rich_help_panel=_LIMITS, help="Requests at once.")
]
AllowModel = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-model", rich_help_panel=_LIMITS, help="A model that it may use; may be repeated; *: all."
    ),
]
AllowClass = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-class", rich_help_panel=_LIMITS, help="interactive or batch: a class that it may use."
    ),
]
MostUrgent = Annotated[
    int | None,
    typer.Option(
        "--most-urgent-priority", rich_help_panel=_LIMITS, help="The lowest priority it may ask for."
    ),
]
Class = Annotated[str, typer.Option("--class", rich_help_panel=_DEFAULTS, help="interactive or batch.")]
Priority = Annotated[
    int | None, typer.Option("--priority", rich_help_panel=_DEFAULTS, help="A lower value goes first.")
]
TtftMs = Annotated[
    float | None, typer.Option("--ttft-ms", rich_help_panel=_DEFAULTS, help="Time to first token.")
]
ItlMs = Annotated[
    float | None, typer.Option("--itl-ms", rich_help_panel=_DEFAULTS, help="Time between tokens.")
]
Deadline = Annotated[
    str,
    typer.Option(
        "--deadline", rich_help_panel=_DEFAULTS, help="Time until the whole result is there, as 90s or 2h."
    ),
]
RefuseIfLate = Annotated[
    bool | None,
    typer.Option(
        "--refuse-if-late/--no-refuse-if-late",
        rich_help_panel=_DEFAULTS,
        help="Refuse at once what would wait for longer than its SLO allows.",
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=0, rich_help_panel=_DEFAULTS, help="Most output tokens.")
]
Expires = Annotated[
    str, typer.Option("--expires", help="When it ends: a time from now as 90d or 12h, or a date (UTC).")
]


@keys_app.command("create")
def keys_create(
    tenant: Annotated[str, typer.Option(help="Tenant whose requests it lets in.")] = "",
    role: Annotated[str, typer.Option(help="Instead of a tenant: admin, agent or router.")] = "",
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    expires: Expires = "",
    requests_per_s: RequestsPerS = None,
    tokens_per_min: TokensPerMin = None,
    concurrent: Concurrent = None,
    allow_model: AllowModel = None,
    allow_class: AllowClass = None,
    most_urgent_priority: MostUrgent = None,
    request_class: Class = "",
    priority: Priority = None,
    ttft_ms: TtftMs = None,
    itl_ms: ItlMs = None,
    deadline: Deadline = "",
    refuse_if_late: RefuseIfLate = None,
    max_tokens: MaxTokens = None,
    controller: Controller = CONTROLLER,
) -> None:
    """Make an API key and print it; it is kept nowhere and cannot be shown again."""
    from chiron.cli.key_terms import KeyOptions
    from chiron.cli.keys import create_key
    from chiron.cli.runner import execute

    options = KeyOptions(
        requests_per_s,
        tokens_per_min,
        concurrent,
        tuple(allow_model or ()),
        tuple(allow_class or ()),
        most_urgent_priority,
        request_class,
        priority,
        ttft_ms,
        itl_ms,
        deadline,
        refuse_if_late,
        max_tokens,
        expires,
    )
    execute(create_key(controller, tenant, role, label, options))


@keys_app.command("set")
def keys_set(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID")],
    expires: Expires = "",
    requests_per_s: RequestsPerS = None,
    tokens_per_min: TokensPerMin = None,
    concurrent: Concurrent = None,
    allow_model: AllowModel = None,
    allow_class: AllowClass = None,
    most_urgent_priority: MostUrgent = None,
    request_class: Class = "",
    priority: Priority = None,
    ttft_ms: TtftMs = None,
    itl_ms: ItlMs = None,
    deadline: Deadline = "",
    refuse_if_late: RefuseIfLate = None,
    max_tokens: MaxTokens = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION", help="Take an option back, as `ttft-ms` or `expires`; may be repeated."
        ),
    ] = None,
    controller: Controller = CONTROLLER,
) -> None:
    """Change a key in force: what is named, and nothing else. It counts within about a second."""
    from chiron.cli.key_terms import KeyOptions
    from chiron.cli.keys import set_key
    from chiron.cli.runner import execute

    options = KeyOptions(
        requests_per_s,
        tokens_per_min,
        concurrent,
        tuple(allow_model or ()),
        tuple(allow_class or ()),
        most_urgent_priority,
        request_class,
        priority,
        ttft_ms,
        itl_ms,
        deadline,
        refuse_if_late,
        max_tokens,
        expires,
        tuple(clear or ()),
    )
    execute(set_key(controller, key_id, options))


@keys_app.command("revoke")
def keys_revoke(
    key_ids: Annotated[list[str], typer.Argument(metavar="KEY_ID")], controller: Controller = CONTROLLER
) -> None:
    """Take keys out of force for good."""
    from chiron.cli.keys import revoke_keys
    from chiron.cli.runner import execute

    execute(revoke_keys(controller, key_ids))


@keys_app.command("list")
def keys_list(as_json: Json = False, controller: Controller = CONTROLLER) -> None:
    """List the keys, without their secrets, with their limits and what is nearly used up."""
    from chiron.cli.keys import list_keys
    from chiron.cli.runner import execute

    execute(list_keys(controller, as_json=as_json))
