"""The commands `chiron tenants` and `chiron certs` and their options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from chiron.cli.options import CONTROLLER, Controller, Json

tenants_app = typer.Typer(help="Apply, list and delete tenants.", no_args_is_help=True)
certs_app = typer.Typer(help="Make a cluster's certificates.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the authority and its certificates.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="DNS name or address under which it serves; may be repeated."),
]
Days = Annotated[int, typer.Option(min=1, help="Days for which certificates are valid.")]


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
