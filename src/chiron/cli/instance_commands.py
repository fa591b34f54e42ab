"""The command `chiron instances` and its options."""

from __future__ import annotations

from typing import Annotated

import typer

from chiron.cli.options import CONTROLLER, Controller, Json

instances_app = typer.Typer(help="List instances; set limits by hand; sleep and wake.", no_args_is_help=True)

Instance = Annotated[str, typer.Argument(metavar="INSTANCE")]


@instances_app.command("list")
def instances_list(as_json: Json = False, controller: Controller = CONTROLLER) -> None:
    """Show the instances, their load, and what their local autoscalers make of it."""
    from chiron.cli.instances import list_instances
    from chiron.cli.runner import execute

    execute(list_instances(controller, as_json=as_json))


@instances_app.command("limits")
def instances_limits(
    instance: Instance,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Most requests that run at once.")
    ] = None,
    step_tokens: Annotated[
        int | None, typer.Option("--step-tokens", min=1, help="Most tokens in one engine step.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Give both back to the local autoscaler.")] = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Set an instance's limits; what is not named stays as it is.

    They hold until they are given back, over restarts of the worker, its agent and the controller. An
    instance that takes this one's place does not have them.
    """
    from chiron.cli.instances import set_limits
    from chiron.cli.runner import execute

    execute(set_limits(controller, instance, batch_size, step_tokens, auto=auto))


@instances_app.command("sleep")
def instances_sleep(instance: Instance, controller: Controller = CONTROLLER) -> None:
    """Let an instance's requests finish, then have it sleep: others may use its GPUs meanwhile.

    One instance less of its model is wanted then.
    """
    from chiron.cli.instances import set_sleeping
    from chiron.cli.runner import execute

    execute(set_sleeping(controller, instance, sleeping=True))


@instances_app.command("wake")
def instances_wake(instance: Instance, controller: Controller = CONTROLLER) -> None:
    """Wake an instance, if nobody who is awake owns its GPUs.

    One instance more of its model is wanted then.
    """
    from chiron.cli.instances import set_sleeping
    from chiron.cli.runner import execute

    execute(set_sleeping(controller, instance, sleeping=False))
