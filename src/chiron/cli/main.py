"""The commands and their options. What they do is imported when they run, so that --help is quick."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from chiron.cli.access_commands import certs_app, tenants_app
from chiron.cli.autoscaling_commands import add_instance_commands, add_model_commands
from chiron.cli.batch.commands import app as batch_app
from chiron.cli.drain import drain_app
from chiron.cli.instance_commands import instances_app
from chiron.cli.key_commands import keys_app
from chiron.cli.options import CONTROLLER, ROUTER, Controller, Json, Router
from chiron.cli.output import guarded_output
from chiron.cli.sim import app as sim_app

app = typer.Typer(
    name="chiron",
    help="Serves large language models on GPU clusters under per-request service-level objectives.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(help="Apply, list, scale, roll back and delete models.", no_args_is_help=True)
add_model_commands(models_app)
add_instance_commands(instances_app)
app.add_typer(models_app, name="models")
nodes_app = typer.Typer(help="List nodes; take GPUs out of use and back.", no_args_is_help=True)
app.add_typer(nodes_app, name="nodes")
app.add_typer(instances_app, name="instances")
app.add_typer(drain_app, name="drain")
app.add_typer(tenants_app, name="tenants")
app.add_typer(keys_app, name="keys")
app.add_typer(certs_app, name="certs")
app.add_typer(batch_app, name="batch")
app.add_typer(sim_app, name="sim")

Nodes = Annotated[int, typer.Option(min=1, help="Nodes (local agents).")]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs that each node declares.")]


@app.callback()
def identify(
    api_key: Annotated[
        str,
        typer.Option(envvar="CHIRON_API_KEY", show_envvar=True, help="Shown to routers and controllers."),
    ] = "",
    ca: Annotated[
        Path | None, typer.Option(envvar="CHIRON_CA", help="PEM file: encrypt; whom to trust.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(envvar="CHIRON_CERT", help="PEM file: certificate.")] = None,
    key: Annotated[Path | None, typer.Option(envvar="CHIRON_KEY", help="PEM file: its key.")] = None,
) -> None:
    """Serves large language models on GPU clusters under per-request service-level objectives."""
    if not (api_key or ca or cert or key):
        return
    from chiron.cli.identity import assume_identity

    if wrong := assume_identity(api_key, ca, cert, key):
        typer.echo(f"error: {wrong}", err=True)
        raise typer.Exit(2)


@app.command()
def up(
    nodes: Nodes = 2,
    gpus: Gpus = 2,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            metavar="FILE.toml",
            help="Model specs to apply; may be repeated. None: one of --engine.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Engine of the model when no --model is given: sim or vllm.")
    ] = "sim",
    weights: Annotated[
        str, typer.Option(help="Weights for --engine vllm; none: SmolLM2-135M-Instruct.")
    ] = "",
    time_scale: Annotated[
        float | None,
        typer.Option(
            help="Slow the sim engines down by this factor, up to 10, and multiply the SLO defaults of their "
            "models by it."
        ),
    ] = None,
    routers: Annotated[int, typer.Option(min=1, help="Routers; they take consecutive ports.")] = 1,
    router_port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 50051,
    http_port: Annotated[
        int,
        typer.Option(
            min=-1, max=65535, help="Of the OpenAI-compatible HTTP door. 0: any free port; -1: no such door."
        ),
    ] = 8000,
    controllers: Annotated[
        int, typer.Option(min=1, help="Controllers, one of which leads; more than one needs --etcd.")
    ] = 1,
    controller_port: Annotated[
        int, typer.Option(min=0, max=65535, help="0: any free port; several take consecutive ones.")
    ] = 50050,
    etcd: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:PORT,…]",
            help="Keep the state in etcd: in that one, or without an address in one that is started here.",
        ),
    ] = None,
    batch_store: Annotated[
        str | None,
        typer.Option(
            metavar="STORE",
            help="Where batches are kept: sqlite:FILE, or none. By default a file beside the logs.",
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with the services' tables.")] = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="Logs and state; none: .chiron/run-<time>, of which the newest ten are kept."),
    ] = None,
    live: Annotated[bool, typer.Option("--live/--no-live", help="Live table, on a terminal.")] = True,
) -> None:
    """Run a whole local cluster in this terminal until Ctrl-C, which drains it.

    A worker, an agent or a router that ends is started again, and of several controllers another one leads.
    With --etcd, so are controllers and etcd, for as long as it takes; without it, the whole cluster ends with
    its controller. It also ends when an agent or a router ends time and again.
    """
    from chiron.cli.runner import execute
    from chiron.cli.up import UpOptions, run_up

    execute(
        run_up(
            UpOptions(
                nodes=nodes,
                gpus=gpus,
                model_files=tuple(model or ()),
                engine=engine,
                weights=weights,
                time_scale=time_scale,
                routers=routers,
                controllers=controllers,
                etcd=etcd,
                router_port=router_port,
                http_port=None if http_port < 0 else http_port,
                controller_port=controller_port,
                batch_store=batch_store,
                config=config,
                directory=directory,
                live=live,
            )
        )
    )


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Name of an applied model.")],
    prompt: Annotated[str, typer.Argument(help="The prompt; `-` reads it from stdin.")],
    chat: Annotated[bool, typer.Option("--chat", help="Send it as a user message.")] = False,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print text as it comes.")] = True,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    request_class: Annotated[str, typer.Option("--class", help="interactive or batch.")] = "interactive",
    slo_ttft: Annotated[float | None, typer.Option(help="Time to first token, in milliseconds.")] = None,
    slo_itl: Annotated[float | None, typer.Option(help="Time between tokens, in milliseconds.")] = None,
    slo_deadline: Annotated[float | None, typer.Option(help="Until the whole result, in seconds.")] = None,
    refuse_if_late: Annotated[
        bool | None,
        typer.Option(
            "--refuse-if-late/--wait-if-late",
            help="Whether to be refused at once where the wait is expected to exceed the SLO.",
        ),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Most seconds that it may take.")] = None,
    lookaside: Annotated[
        bool,
        typer.Option("--lookaside/--proxy", help="Stream from the worker itself, or through the router."),
    ] = True,
    as_json: Json = False,
    router: Router = ROUTER,
) -> None:
    """Generate text and print it."""
    from chiron.cli.generate import GenerateOptions, run_generate
    from chiron.cli.runner import execute

    execute(
        run_generate(
            GenerateOptions(
                routers=tuple(router.split(",")),
                model=model,
                prompt=prompt,
                chat=chat,
                stream=stream,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                request_class=request_class,
                slo_ttft_ms=slo_ttft,
                slo_itl_ms=slo_itl,
                slo_deadline_s=slo_deadline,
                refuse_if_late=refuse_if_late,
                timeout_s=timeout,
                lookaside=lookaside,
                as_json=as_json,
            )
        )
    )


@models_app.command("apply")
def models_apply(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.toml", help="Model specs.")],
    rollback_on_failure: Annotated[
        bool,
        typer.Option(
            "--rollback-on-failure",
            help="When the new version fails, return to the one before; otherwise the roll stops there.",
        ),
    ] = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Create the models of TOML files, or replace their specs."""
    from chiron.cli.models import apply
    from chiron.cli.runner import execute

    execute(apply(controller, files, rollback_on_failure=rollback_on_failure))


@models_app.command("list")
def models_list(as_json: Json = False, controller: Controller = CONTROLLER) -> None:
    """List the models."""
    from chiron.cli.models import list_models
    from chiron.cli.runner import execute

    execute(list_models(controller, as_json=as_json))


@models_app.command("rollback")
def models_rollback(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    to: Annotated[int, typer.Option(min=0, help="Version; 0: the newest before the present one.")] = 0,
    controller: Controller = CONTROLLER,
) -> None:
    """Return to an earlier version of a model's spec, one instance at a time."""
    from chiron.cli.models import rollback
    from chiron.cli.runner import execute

    execute(rollback(controller, name, to))


@models_app.command("history")
def models_history(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: Json = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Show the versions of a model's spec that are kept, and what each one changed."""
    from chiron.cli.models import history
    from chiron.cli.runner import execute

    execute(history(controller, name, as_json=as_json))


@models_app.command("delete")
def models_delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME")], controller: Controller = CONTROLLER
) -> None:
    """Delete models; their instances drain and stop."""
    from chiron.cli.models import delete
    from chiron.cli.runner import execute

    execute(delete(controller, names))


@nodes_app.command("list")
def nodes_list(as_json: Json = False, controller: Controller = CONTROLLER) -> None:
    """Show the nodes, their GPUs in use, and what is wrong with any."""
    from chiron.cli.nodes import list_nodes
    from chiron.cli.runner import execute

    execute(list_nodes(controller, as_json=as_json))


Node = Annotated[str, typer.Argument(metavar="NODE")]
Gpu = Annotated[int, typer.Argument(metavar="GPU", min=0, help="Its index on the node.")]


@nodes_app.command("cordon")
def nodes_cordon(
    node: Node,
    gpu: Gpu,
    reason: Annotated[str, typer.Option(help="Why, for whoever sees it.")] = "",
    controller: Controller = CONTROLLER,
) -> None:
    """Take a GPU out of use: nothing starts there, and what runs there moves elsewhere if it can."""
    from chiron.cli.nodes import cordon
    from chiron.cli.runner import execute

    execute(cordon(controller, node, gpu, cordoned=True, reason=reason))


@nodes_app.command("uncordon")
def nodes_uncordon(node: Node, gpu: Gpu, controller: Controller = CONTROLLER) -> None:
    """Take a GPU back into use, whoever or whatever has cordoned it."""
    from chiron.cli.nodes import cordon
    from chiron.cli.runner import execute

    execute(cordon(controller, node, gpu, cordoned=False))


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show each change until Ctrl-C.")] = False,
    as_json: Json = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Show controllers and their store, models, nodes, routers and instances.

    A narrow terminal shows fewer columns; --json has them all.
    """
    from chiron.cli.runner import execute
    from chiron.cli.status import show_status

    execute(show_status(controller, watch=watch, as_json=as_json))


@app.command()
def explain(
    decision: Annotated[
        str, typer.Argument(metavar="[ID]", help="A decision; none: the newest of each model.")
    ] = "",
    last: Annotated[
        int | None, typer.Option(min=1, metavar="[N]", help="The newest N decisions; without a number, one.")
    ] = None,
    since: Annotated[str, typer.Option(metavar="TIME", help="Those of the last 90s, 10m, 2h, …")] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="Only this model's.")] = "",
    as_json: Json = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Say why the controller did what it did: what it saw, what else it weighed, and what came of it."""
    from chiron.cli.explain import ExplainOptions, show_explanations
    from chiron.cli.runner import execute

    execute(show_explanations(ExplainOptions(controller, decision, last, since, model, as_json)))


@app.command()
def top(
    model: Annotated[str, typer.Option(metavar="NAME", help="Only this model.")] = "",
    as_json: Json = False,
    controller: Controller = CONTROLLER,
) -> None:
    """Watch the cluster at work until Ctrl-C: GPUs, models, and decisions as they happen.

    On a terminal one screen; elsewhere a line for each change.
    """
    from chiron.cli.runner import execute
    from chiron.cli.top import show_top

    execute(show_top(controller, model=model, as_json=as_json))


@app.command()
def router(
    address: Annotated[
        str, typer.Argument(envvar="CHIRON_ROUTER", metavar="[HOST:PORT]", help="Router on this host.")
    ] = ROUTER,
    as_json: Json = False,
) -> None:
    """Show what one router knows and holds, also while no controller can be asked."""
    from chiron.cli.router import show_router
    from chiron.cli.runner import execute

    execute(show_router(address, as_json=as_json))


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Of arrivals, lengths and victims.")] = 0,
    nodes: Nodes = 2,
    gpus: Gpus = 4,
    kills: Annotated[
        bool, typer.Option("--kills/--no-kills", help="Kill a worker, the leader and an agent.")
    ] = True,
    engine: Annotated[str, typer.Option(help="sim, or vllm for one question to a real small model.")] = "sim",
    live: Annotated[bool, typer.Option("--live/--no-live", help="Live view, on a terminal.")] = True,
) -> None:
    """Load a local cluster with a burst and a batch backlog for 90 s, and print what it did as JSON."""
    from chiron.cli.runner import execute

    if engine == "vllm":
        from chiron.cli.demo.vllm import run_vllm_demo

        execute(run_vllm_demo(live=live))
    elif engine == "sim":
        from chiron.cli.demo.run import DemoOptions, run_demo

        execute(run_demo(DemoOptions(seed=seed, nodes=nodes, gpus=gpus, kills=kills, live=live)))
    else:
        raise typer.BadParameter(f"must be sim or vllm, not {engine}", param_hint="--engine")


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"chiron {installed('chiron-serving')}")


def main() -> None:
    """Entry point of the `chiron` command."""
    with guarded_output():
        app(args=_with_values(sys.argv[1:]))


_LACKED = {"--etcd": "", "--last": "1"}
"""What options stand for when no value follows them: typer knows none that may lack its value."""


def _with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values that are left out."""
    return [
        f"{one}={_LACKED[one]}" if one in _LACKED and (not after or after.startswith("-")) else one
        for one, after in zip(arguments, [*arguments[1:], ""], strict=True)
    ]


if __name__ == "__main__":
    main()
