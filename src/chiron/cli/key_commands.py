"""The commands `chiron keys`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from chiron.cli.key_options import with_key_options
from chiron.cli.options import CONTROLLER, Controller, Json

keys_app = typer.Typer(help="Create, change, revoke and list API keys.", no_args_is_help=True)


@keys_app.command("create")
@with_key_options
def keys_create(
    *,
    tenant: Annotated[str, typer.Option(help="Tenant whose requests it lets in.")] = "",
    role: Annotated[str, typer.Option(help="Instead of a tenant: admin, agent or router.")] = "",
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    options: Any,
    controller: Controller = CONTROLLER,
) -> None:
    """Make an API key and print it; it is kept nowhere and cannot be shown again."""
    from chiron.cli.keys import create_key
    from chiron.cli.runner import execute

    execute(create_key(controller, tenant, role, label, options))


@keys_app.command("set")
@with_key_options
def keys_set(
    *,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID")],
    options: Any,
    clear: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION", help="Take an option back, as `ttft-ms` or `expires`; may be repeated."
        ),
    ] = None,
    controller: Controller = CONTROLLER,
) -> None:
    """Change a key in force: what is named, and nothing else. It counts within about a second."""
    from chiron.cli.keys import set_key
    from chiron.cli.runner import execute

    execute(set_key(controller, key_id, replace(options, clear=tuple(clear or ()))))


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
