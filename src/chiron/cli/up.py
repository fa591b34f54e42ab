"""`chiron up`: a local cluster in this terminal, until Ctrl-C drains it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from chiron.cli.progress import Progress, open_progress
from chiron.cli.runner import EXIT_BAD_START, EXIT_INTERRUPTED, CliError
from chiron.cluster import AdminError, LocalCluster, read_model_files
from chiron.cluster.batch_store import is_configured, who_keeps
from chiron.cluster.readiness import failures, is_ready, obstacle
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, smollm2_spec, vllm_spec
from chiron.rpc.controllers import split_addresses
from chiron.v1 import cluster_pb2 as pb

_LOOK_AGAIN_S = 1.0
MOST_TIME_SCALE = 10.0
"""What the sim engine takes."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What the command line asked for; see `chiron up --help`."""

    nodes: int
    gpus: int
    model_files: tuple[Path, ...]
    engine: str
    weights: str
    time_scale: float | None
    routers: int
    controllers: int
    etcd: str | None
    """None: the state lies in memory; empty: in an etcd of the cluster's own; else where its members are."""
    router_port: int
    http_port: int | None
    controller_port: int
    batch_store: str | None
    """None: as the configuration says, else a file of the run's own."""
    config: Path | None
    directory: Path | None
    live: bool


async def run_up(options: UpOptions) -> int:
    """Runs the cluster until it is cancelled; returns 0 when it has drained."""
    console = Console()
    # Off the loop, so that Ctrl-C is heard while a model is being built.
    specs = await asyncio.to_thread(_specs, options)
    store = _own_store(options.config) if options.batch_store is None else options.batch_store
    try:
        async with LocalCluster(
            nodes=options.nodes,
            gpus=options.gpus,
            routers=options.routers,
            controllers=options.controllers,
            etcd=options.etcd is not None,
            etcd_endpoints=split_addresses(options.etcd or ""),
            directory=options.directory,
            controller_port=options.controller_port,
            router_port=options.router_port,
            http_port=options.http_port,
            config=options.config,
            batch_store=store,
            worker_env=worker_env(specs),
        ) as cluster:
            try:
                await _serve(cluster, specs, console, store, live=options.live)
            finally:
                console.print("draining; Ctrl-C again ends everything at once", highlight=False)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 1:
            return EXIT_INTERRUPTED
        console.print("all processes have ended")
    return 0


def _own_store(config: Path | None) -> str | None:
    """A file of the run's own, unless the configuration says where batches are kept."""
    return None if is_configured(config) else ""


async def _serve(
    cluster: LocalCluster, specs: Sequence[pb.ModelSpec], console: Console, store: str | None, *, live: bool
) -> None:
    with open_progress(console, live=live) as progress:
        progress.say(f"logs and state: {cluster.directory}")
        await cluster.apply(specs)
        snapshot = await cluster.wait_for(lambda seen: _settled(seen, specs, progress))
        for spec in specs:
            for failure in failures(snapshot, spec.name):
                progress.say(f"failed: {failure}")
        if keeping := who_keeps(store, cluster.router_addresses, cluster.http_urls):
            progress.say(keeping)
        doors = ", ".join(f"{url}/v1" for url in cluster.http_urls)
        progress.say(
            f"ready: router {','.join(cluster.router_addresses)} controller {cluster.controller_address}; "
            f"{f'OpenAI API {doors}; ' if doors else ''}Ctrl-C drains"
        )
        watching = asyncio.ensure_future(_watch(cluster, progress))
        ending = asyncio.ensure_future(cluster.wait_ended(progress.say))
        try:
            # The view ends by a mistake of its own alone.
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                await watching
            raise CliError(ending.result())
        finally:
            watching.cancel()
            ending.cancel()
            await asyncio.gather(watching, ending, return_exceptions=True)


async def _watch(cluster: LocalCluster, progress: Progress) -> None:
    """Shows the cluster until it is cancelled: what serves goes on while nobody can say how it stands."""
    unseen = False
    while True:
        try:
            async with aclosing(cluster.admin.watch()) as snapshots:
                async for snapshot in snapshots:
                    if unseen:
                        progress.say("the cluster can be seen again")
                    unseen = False
                    progress.update(snapshot)
        except AdminError as error:
            if not unseen:
                progress.say(f"the cluster cannot be seen at present, what serves goes on: {error}")
            unseen = True
            await asyncio.sleep(_LOOK_AGAIN_S)


def _settled(snapshot: pb.ClusterSnapshot, specs: Sequence[pb.ModelSpec], progress: Progress) -> bool:
    """True when nothing more comes by itself: each model serves as asked, or will not."""
    progress.update(snapshot)
    return all(is_ready(snapshot, spec.name) or obstacle(snapshot, spec.name) for spec in specs)


def worker_env(specs: Sequence[pb.ModelSpec]) -> dict[str, str]:
    """Variables for the workers: on a machine without CUDA, vLLM needs its CPU settings."""
    return dict(CPU_WORKER_ENV) if any(spec.engine == "vllm" for spec in specs) and not _cuda() else {}


def _cuda() -> bool:
    return Path("/dev/nvidiactl").exists()


def stretch(spec: pb.ModelSpec, time_scale: float) -> None:
    """Slows a sim engine down and gives its requests as much more time; other engines stay as they are.

    The SLO defaults count as written for an engine at full speed, whatever time_scale the spec itself has.
    """
    if spec.engine != "sim":
        return
    spec.engine_args["time_scale"] = time_scale
    for kind in ("interactive", "batch"):
        if not spec.slo_defaults.HasField(kind):
            continue
        slo = getattr(spec.slo_defaults, kind)
        for field, value in slo.ListFields():
            setattr(slo, field.name, value * time_scale)


def _specs(options: UpOptions) -> list[pb.ModelSpec]:
    scale = options.time_scale
    # Written so that NaN is refused too.
    if scale is not None and not 0 < scale <= MOST_TIME_SCALE:
        raise CliError(
            f"--time-scale must be above 0 and at most {MOST_TIME_SCALE:g}, not {scale:g}", EXIT_BAD_START
        )
    specs = read_model_files(options.model_files) or [_default_model(options)]
    if scale is not None:
        for spec in specs:
            stretch(spec, scale)
    return specs


def _default_model(options: UpOptions) -> pb.ModelSpec:
    if options.engine == "sim":
        most = options.nodes * options.gpus
        spec = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=min(2, most))
        spec.engine_args["profile"] = "toy"
        return spec
    if options.engine == "vllm":
        return vllm_spec(options.weights) if options.weights else smollm2_spec()
    raise CliError(f"--engine must be sim or vllm, not {options.engine}", EXIT_BAD_START)
