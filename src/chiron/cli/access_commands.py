"""The commands `chiron keys`, `chiron tenants` and `chiron certs` and their options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from chiron.cli.options import CONTROLLER, Controller, Json

keys_app = typer.Typer(help="Create, revoke and list API keys.", no_args_is_help=True)
tenants_app = typer.Typer(help="Apply, list and delete tenants.", no_args_is_help=True)
certs_app = typer.Typer(help="Make a cluster's certificates.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the authority and its certificates.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="DNS name or address under which it serves; may be repeated."),
]
Days = Annotated[int, typer.Option(min=1, help="Days for which certificates are valid.")]


@keys_app.command("create")
def keys_create(
    tenant: Annotated[str, typer.Option(help="Tenant whose requests it lets in.")] = "",
    role: Annotated[str, typer.Option(help="Instead of a tenant: admin, agent or router.")] = "",
    label: Annotated[str, typer.Option(help="A note for people.")] = "",
    controller: Controller = CONTROLLER,
) -> None:
    """Make an API key and print it; it is kept nowhere and cannot be shown again."""
    from chiron.cli.access import create_key
    from chiron.cli.runner import execute

    execute(create_key(controller, tenant, role, label))


@keys_app.command("revoke")
def keys_revoke(
    key_ids: Annotated[list[str], typer.Argument(metavar="KEY_ID")], controller: Controller = CONTROLLER
) -> None:
    """Take keys out of force for good."""
    from chiron.cli.access import revoke_keys
    from chiron.cli.runner import execute

    execute(revoke_keys(controller, key_ids))


@keys_app.command("list")
def keys_list(as_json: Json = False, controller: Controller = CONTROLLER) -> None:
    """List the keys, without their secrets."""
    from chiron.cli.access import list_keys
    from chiron.cli.runner import execute

    execute(list_keys(controller, as_json=as_json))


@tenants_app.command("apply")
def tenants_apply(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.toml", help="Tenants.")],
    controller: Controller = CONTROLLER,
) -> None:
    """Create the tenants of TOML files, or replace what they may do."""
    from chiron.cli.access import apply_tenants
    from chiron.cli.runner import execute

    execute(apply_tenants(controller, files))


@tenants_app.command("list")
def tenants_list(as_json: Json = False, controller: Controller = CONTROLLER) -> None:
    """List the tenants."""
    from chiron.cli.access import list_tenants
    from chiron.cli.runner import execute

    execute(list_tenants(controller, as_json=as_json))


@tenants_app.command("delete")
def tenants_delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME")], controller: Controller = CONTROLLER
) -> None:
    """Delete tenants that have no key in force."""
    from chiron.cli.access import delete_tenants
    from chiron.cli.runner import execute

    execute(delete_tenants(controller, names))


@certs_app.command("init")
def certs_init(
    folder: Folder,
    hosts: Hosts = None,
    days: Days = 365,
    authority_days: Annotated[int, typer.Option(min=1, help="Days for which the authority is valid.")] = 3650,
) -> None:
    """Make an authority, and a certificate for each role: controller, router, agent, worker and admin."""
    from chiron.auth import certs

    _report(
        lambda: certs.init(
            folder, hosts or ["localhost", "127.0.0.1", "::1"], days=days, authority_days=authority_days
        )
    )


@certs_app.command("issue")
def certs_issue(
    folder: Folder,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Common name, and name of the files.")],
    roles: Annotated[
        list[str] | None, typer.Option("--role", help="What its holder is; may be repeated.")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whom its holder stands for at routers.")] = "",
    hosts: Hosts = None,
    days: Days = 365,
) -> None:
    """Make one more certificate of the folder's authority."""
    from chiron.auth import certs

    _report(lambda: certs.issue(folder, name, roles=roles or [], tenant=tenant, hosts=hosts or [], days=days))


def _report(make: Callable[[], list[Path]]) -> None:
    from chiron.auth.certs import CertsError

    try:
        for file in make():
            print(file)
    except CertsError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
