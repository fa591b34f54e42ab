"""`chiron drain`: empty an instance, a role or a node."""

from __future__ import annotations

from typing import Annotated

import typer

from chiron.cli.options import CONTROLLER, Controller

drain_app = typer.Typer(
    help="Empty an instance, a role or a node: nothing is aborted, and others take their places.",
    no_args_is_help=True,
)


@drain_app.command("instance")
def drain_instance(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE")], controller: Controller = CONTROLLER
) -> None:
    """Replace an instance; it stops once another one serves, or at once where no GPU is free for one."""
    from chiron.cli.drain_calls import drain_instance
    from chiron.cli.runner import execute

    execute(drain_instance(controller, instance))


@drain_app.command("role")
def drain_role(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    role: Annotated[str, typer.Argument(metavar="ROLE", help="interactive, mixed or batch.")],
    controller: Controller = CONTROLLER,
) -> None:
    """Replace all instances of a model that have a role."""
    from chiron.cli.drain_calls import drain_role
    from chiron.cli.runner import execute

    execute(drain_role(controller, model, role))


@drain_app.command("node")
def drain_node(
    node: Annotated[str, typer.Argument(metavar="NODE")],
    undo: Annotated[bool, typer.Option("--undo", help="Take it back into service.")] = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Move every instance off a node and place nothing new on it."""
    from chiron.cli.drain_calls import drain_node
    from chiron.cli.runner import execute

    execute(drain_node(controller, node, undo=undo))
