"""Commands that tell the global autoscaler what to leave alone."""

from __future__ import annotations

from typing import Annotated

import typer

from chiron.cli.options import CONTROLLER, Controller

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
Instance = Annotated[str, typer.Argument(metavar="INSTANCE")]


def add_model_commands(models_app: typer.Typer) -> None:
    """Adds pause, resume and scale to `chiron models`."""
    models_app.command("pause")(models_pause)
    models_app.command("resume")(models_resume)
    models_app.command("scale")(models_scale)


def add_instance_commands(instances_app: typer.Typer) -> None:
    """Adds role to `chiron instances`."""
    instances_app.command("role")(instances_role)


def models_pause(
    name: Name,
    reason: Annotated[str, typer.Option(help="Why, for whoever sees it.")] = "",
    controller: Controller = CONTROLLER,
) -> None:
    """Keep the autoscaler from changing a model; it goes on showing what it would do."""
    from chiron.cli.autoscaling import pause
    from chiron.cli.runner import execute

    execute(pause(controller, name, paused=True, reason=reason))


def models_resume(name: Name, controller: Controller = CONTROLLER) -> None:
    """Let the autoscaler change a model again."""
    from chiron.cli.autoscaling import pause
    from chiron.cli.runner import execute

    execute(pause(controller, name, paused=False))


def models_scale(
    name: Name,
    instances: Annotated[int | None, typer.Argument(metavar="[N]", min=0, help="Instances.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Give the number back to the autoscaler.")] = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Set how many instances a model has. Of an autoscaled one they stay so many until --auto."""
    from chiron.cli.autoscaling import scale
    from chiron.cli.runner import execute

    execute(scale(controller, name, instances, auto=auto))


def instances_role(
    instance: Instance,
    role: Annotated[str | None, typer.Argument(metavar="[ROLE]", help="interactive, mixed or batch.")] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Give the role back to the autoscaler.")] = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Set an instance's role. The autoscaler leaves it until --auto; nothing that runs there is aborted."""
    from chiron.cli.autoscaling import set_role
    from chiron.cli.runner import execute

    execute(set_role(controller, instance, role, auto=auto))
