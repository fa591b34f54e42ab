"""The main job: a cluster, two kinds of traffic, kills, and the figures as one JSON line."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console

from chiron.cli.demo.figures import Figures, percentile
from chiron.cli.demo.kills import Killer, Losses
from chiron.cli.demo.traffic import BATCH, INTERACTIVE, Traffic
from chiron.cli.progress import Progress, open_progress
from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.local_etcd import find_etcd
from chiron.cluster.process import StartError
from chiron.v1 import cluster_pb2 as pb

MODEL = "toy"
SETTLE_S = 120.0
"""Time after the last arrival within which every answer must have come."""

SETTINGS = {"agent": {"stable_after_s": "1"}}
"""Kills are not the workers' fault: a long run must not end with an agent that gives a victim up."""
SHORT_LEASE = {"controller": {"store.lease_s": "3"}}
"""So that another controller leads before a short run is over."""
CONTROLLERS = 3
RECENT = 1000
"""Latency samples that the running headline rests on."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asked for; see `chiron demo --help`."""

    duration_s: float
    kill_every_s: float | None
    seed: int
    nodes: int
    gpus: int
    live: bool


async def run_demo(options: DemoOptions) -> int:
    """Runs the demo; returns 0 when everything went as it should."""
    figures = Figures()
    # The JSON line is all that goes to stdout.
    console = Console(stderr=True)
    live = options.live and sys.stdout.isatty()
    etcd = has_etcd()
    async with LocalCluster(
        nodes=options.nodes,
        gpus=options.gpus,
        controllers=CONTROLLERS if etcd else 1,
        etcd=etcd,
        settings=SETTINGS | (SHORT_LEASE if etcd else {}),
    ) as cluster:
        with open_progress(console, live=live) as progress:
            progress.say(
                f"starting {options.nodes} nodes with {options.gpus} GPUs each in {cluster.directory}"
            )
            if not etcd:
                progress.say("no etcd is installed: one controller runs, and is not killed")
            await cluster.apply([demo_spec(options.nodes * options.gpus)])
            await cluster.wait_ready(progress=progress.update)
            killer = Killer(cluster, MODEL, options.seed, progress.say, leader=etcd)
            duration_s = await _load(cluster, options, figures, killer, progress)
    result = {
        **figures.summary(duration_s),
        "killed": killer.losses.workers,
        "restarted": killer.losses.restarted,
        "agents_killed": killer.losses.agents,
        "leaders_killed": killer.losses.leaders,
        "seed": options.seed,
        "nodes": options.nodes,
        "gpus_per_node": options.gpus,
        "engine": "sim",
    }
    wrong = verdict(figures, killer.losses)
    for reason in wrong:
        print(f"failed: {reason}", file=sys.stderr)
    print(json.dumps(result), flush=True)
    return 1 if wrong else 0


def demo_spec(gpus: int) -> pb.ModelSpec:
    """Two instances of the toy profile, slowed down so that two cores carry cluster and traffic with ease.

    Args:
        gpus: of the whole cluster; one has room for one instance.
    """
    spec = pb.ModelSpec(name=MODEL, engine="sim", gpus_per_instance=1, max_batch_size=32)
    spec.min_instances = min(2, gpus)
    spec.engine_args.update({"profile": "toy", "time_scale": 8})
    return spec


def has_etcd() -> bool:
    """Whether a cluster of this machine's own can keep its state in etcd."""
    try:
        find_etcd()
    except StartError:
        return False
    return True


def verdict(figures: Figures, losses: Losses) -> list[str]:
    """What a run did that it should not have; empty: nothing."""
    wrong = list(figures.errors)
    if figures.total("finished") == 0:
        wrong.append("no request finished")
    if losses.workers == 0:
        wrong.append("no worker was killed")
    elif figures.total("resumed") == 0:
        wrong.append("no stream was resumed, though a worker was killed that was answering")
    if losses.restarted < losses.workers:
        wrong.append(
            f"{losses.workers - losses.restarted} of {losses.workers} killed workers did not come back"
        )
    if losses.recovered < losses.agents + losses.leaders:
        wrong.append("the control plane did not come back")
    if shed := figures.total("shed"):
        wrong.append(f"{shed} arrivals were shed because too many requests were outstanding")
    if unended := figures.total("outstanding"):
        wrong.append(f"{unended} requests had not ended {SETTLE_S:g} s after the last arrival")
    return wrong


async def _load(
    cluster: LocalCluster, options: DemoOptions, figures: Figures, killer: Killer, progress: Progress
) -> float:
    """Runs traffic and kills; returns how long the traffic took, in seconds."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    first_kill_s = options.kill_every_s or options.duration_s / 2
    async with Client(cluster.router_addresses) as client:
        loads = [Traffic(client, MODEL, load, figures, options.seed) for load in (INTERACTIVE, BATCH)]
        watching = asyncio.create_task(_watch(cluster, progress, figures, start))
        try:
            async with asyncio.TaskGroup() as group:
                for traffic in loads:
                    group.create_task(_bounded(traffic, options.duration_s))
                group.create_task(
                    killer.run(
                        first_s=first_kill_s,
                        every_s=options.kill_every_s,
                        control_s=options.duration_s / 2,
                        until_s=options.duration_s,
                    )
                )
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    return loop.time() - start


async def _bounded(traffic: Traffic, duration_s: float) -> None:
    try:
        async with asyncio.timeout(duration_s + SETTLE_S):
            await traffic.run(duration_s)
    except TimeoutError:
        return  # The verdict counts what has not ended.


async def _watch(cluster: LocalCluster, progress: Progress, figures: Figures, start: float) -> None:
    """Shows the cluster at each change, and the figures at each beat of the display."""
    newest = await cluster.admin.snapshot()
    loop = asyncio.get_running_loop()

    async def follow() -> None:
        nonlocal newest
        async with aclosing(cluster.admin.watch()) as snapshots:
            async for newest in snapshots:
                progress.update(newest, headline(figures, loop.time() - start) if progress.live else "")

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.5 if progress.live else 5.0)
            progress.update(newest, headline(figures, loop.time() - start))

    await asyncio.gather(follow(), beat())


def headline(figures: Figures, elapsed_s: float) -> str:
    """The figures so far in one line; latencies over the last samples, so that its cost stays the same."""
    ttft = [*figures.ttft_ms["interactive"][-RECENT:], *figures.ttft_ms["batch"][-RECENT:]]
    kinds = ", ".join(f"{kind} {count.finished}/{count.requests}" for kind, count in figures.counts.items())
    return (
        f"{elapsed_s:5.1f} s: finished {kinds}; resumed {figures.total('resumed')}, "
        f"retried {figures.total('retried')}; TTFT p50 {_ms(percentile(ttft, 50))} "
        f"p99 {_ms(percentile(ttft, 99))}, ITL p50 {_ms(percentile(figures.itl_ms[-RECENT:], 50))}; "
        f"{figures.tokens / max(elapsed_s, 1e-9):.0f} tokens/s"
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
