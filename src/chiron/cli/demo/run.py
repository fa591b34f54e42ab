"""The main job: a cluster that scales itself under a burst and a backlog; its figures as one JSON line."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console

from chiron.cli.at_work import Lines, Screen, View
from chiron.cli.demo.figures import Figures, percentile
from chiron.cli.demo.fixed_fleet import smallest_fixed_fleet
from chiron.cli.demo.kills import Killer, Losses
from chiron.cli.demo.noise import NoiseMeter
from chiron.cli.demo.plan import KILL_AT_S, make_plan
from chiron.cli.demo.tally import Tally, scaling
from chiron.cli.demo.traffic import Traffic
from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.local_etcd import find_etcd
from chiron.cluster.process import StartError
from chiron.v1 import cluster_pb2 as pb

MODEL = "demo"
SETTLE_S = 30.0
"""Time after the last arrival and the last deadline within which every answer must have come."""
TTFT_SLO_MS, ITL_SLO_MS, BATCH_ITL_SLO_MS = 8000.0, 300.0, 600.0
MOST_AT_ONCE = 24
"""Requests that an instance runs at once: its ceiling, and what it starts with."""
NOISE_FACTOR = 5.0
"""The SLOs are at least so many times the machine's scheduling noise, or times measured here mean little."""
ATTAINMENT_GOAL = 0.99
CONTROLLERS = 3
RECENT = 200
"""Latency samples that the running headline rests on."""

CONTROLLER = {
    "autoscaler.interval_s": "1",
    "presumed_load_time_s": "4",
    # A history of twenty load times, by which Θ is learned, is longer than the demo, and what is held for a
    # minute elsewhere is held for seconds here.
    "autoscaler.chiron.default_theta": "0.85",
    "autoscaler.chiron.theta_warmup_loads": "1000",
    "autoscaler.chiron.min_hold_s": "5",
    "autoscaler.chiron.payback": "1",
    "autoscaler.chiron.batch_idle_s": "2",
}
AGENT = {"stable_after_s": "1"}
"""Kills are not the workers' fault: a long run must not end with an agent that gives a victim up."""
SHORT_LEASE = {"store.lease_s": "3"}
"""So that another controller leads soon after the leader is killed."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asked for; see `chiron demo --help`."""

    seed: int
    nodes: int
    gpus: int
    kills: bool
    live: bool


async def run_demo(options: DemoOptions) -> int:
    """Runs the demo; returns 0 when everything went as it should."""
    figures = Figures(ttft_slo_ms=TTFT_SLO_MS, itl_slo_ms=ITL_SLO_MS)
    # The JSON line is all that goes to stdout.
    console = Console(stderr=True)
    live = options.live and sys.stdout.isatty()
    etcd = has_etcd()
    plan, spec, tally = make_plan(options.seed), demo_spec(), Tally()
    async with LocalCluster(
        nodes=options.nodes,
        gpus=options.gpus,
        controllers=CONTROLLERS if etcd else 1,
        etcd=etcd,
        settings={"controller": CONTROLLER | (SHORT_LEASE if etcd else {}), "agent": AGENT},
        batch_store="",
    ) as cluster:
        view: View = Screen(console, whole=False) if live and console.is_terminal else Lines(console)
        with view:
            view.say(f"starting {options.nodes} nodes with {options.gpus} GPUs each in {cluster.directory}")
            if not etcd:
                view.say("no etcd is installed: one controller runs, and is not killed")
            await cluster.apply([spec])
            await cluster.wait_ready(progress=view.cluster)
            loop = asyncio.get_running_loop()
            began = loop.time()
            tally.see(await cluster.admin.snapshot(), began)
            tally.gpu_seconds = 0.0
            async with NoiseMeter() as meter, Client(cluster.router_addresses) as client:
                traffic = Traffic(client, MODEL, plan, figures)
                killer = Killer(cluster, MODEL, options.seed, view.say, traffic.to_come, leader=etcd)
                watching = asyncio.create_task(_watch(cluster, view, figures, tally, began))
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(traffic.run(SETTLE_S))
                        if options.kills:
                            group.create_task(killer.run(KILL_AT_S))
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
                duration_s = loop.time() - began
                tally.until(began + duration_s)
                done = scaling(await cluster.admin.decisions(limit=1000))
        fixed = await asyncio.to_thread(
            smallest_fixed_fleet, plan, spec, nodes=options.nodes, gpus=options.gpus, seed=options.seed
        )
    noise = meter.noise
    result: dict[str, object] = {
        **figures.summary(),
        **done,
        "preemptions": tally.preemptions,
        "gpu_seconds": round(tally.gpu_seconds, 1),
        "gpu_seconds_static": round(fixed.instances * duration_s, 1) if fixed else None,
        "static_instances": fixed.instances if fixed else None,
        "most_gpus": tally.most_gpus,
        "noise_p50_ms": noise.p50_ms if noise else None,
        "noise_p99_ms": noise.p99_ms if noise else None,
        "killed": killer.losses.workers,
        "restarted": killer.losses.restarted,
        "agents_killed": killer.losses.agents,
        "leaders_killed": killer.losses.leaders,
        "duration_s": round(duration_s, 1),
        "seed": options.seed,
        "nodes": options.nodes,
        "gpus_per_node": options.gpus,
        "engine": "sim",
    }
    if noise:
        print(
            f"scheduling noise of this machine: p50 {noise.p50_ms:g} ms, p99 {noise.p99_ms:g} ms; "
            f"the ITL SLO is {ITL_SLO_MS:g} ms",
            file=sys.stderr,
        )
    wrong = [*verdict(result, kills=options.kills), *figures.errors, *lost(killer.losses)]
    for reason in wrong:
        print(f"failed: {reason}", file=sys.stderr)
    print(json.dumps(result), flush=True)
    return 1 if wrong else 0


def demo_spec() -> pb.ModelSpec:
    """One model at human speed, that starts with one instance and may have one on each GPU."""
    spec = pb.ModelSpec(name=MODEL, engine="sim", gpus_per_instance=1, max_batch_size=MOST_AT_ONCE)
    spec.min_instances = 1
    spec.autoscaling.enabled = True
    spec.engine_args.update({"profile": "demo"})
    spec.slo_defaults.interactive.ttft_ms = TTFT_SLO_MS
    spec.slo_defaults.interactive.itl_ms = ITL_SLO_MS
    spec.slo_defaults.batch.itl_ms = BATCH_ITL_SLO_MS
    return spec


def has_etcd() -> bool:
    """Whether a cluster of this machine's own can keep its state in etcd."""
    try:
        find_etcd()
    except StartError:
        return False
    return True


def verdict(result: dict[str, object], *, kills: bool) -> list[str]:
    """Which of its promises a run has not kept; empty: none."""
    wrong = []
    for key, goal in (("interactive_attainment", ATTAINMENT_GOAL), ("batch_deadlines_met", 1.0)):
        if (_number(result, key) or 0.0) < goal:
            wrong.append(f"{key} is {result[key]}, and should be at least {goal}")
    if result["failed"]:
        wrong.append(f"{result['failed']} requests failed")
    counts = ["scale_ups", "scale_downs", "role_changes", "preemptions", *(["resumed"] if kills else [])]
    wrong += [f"{key} is 0" for key in counts if not result[key]]
    static = _number(result, "gpu_seconds_static")
    if static is not None and not 0 < (_number(result, "gpu_seconds") or 0.0) < static:
        wrong.append(f"{result['gpu_seconds']} GPU-seconds, where a fixed fleet takes {static}")
    noise_ms = _number(result, "noise_p99_ms")
    if noise_ms is not None and noise_ms * NOISE_FACTOR > ITL_SLO_MS:
        wrong.append(
            f"this machine is too busy for figures to mean anything: its scheduling noise is {noise_ms:g} ms "
            f"(p99), and the ITL SLO of {ITL_SLO_MS:g} ms is less than {NOISE_FACTOR:g} times that"
        )
    return wrong


def lost(losses: Losses) -> list[str]:
    """What was killed and did not come back."""
    wrong = []
    if losses.restarted < losses.workers:
        wrong.append(
            f"{losses.workers - losses.restarted} of {losses.workers} killed workers did not come back"
        )
    if losses.recovered < losses.agents + losses.leaders:
        wrong.append("the control plane did not come back")
    return wrong


async def _watch(cluster: LocalCluster, view: View, figures: Figures, tally: Tally, began: float) -> None:
    """Shows the cluster and its decisions as they change, and the figures at each beat of the display."""
    loop = asyncio.get_running_loop()

    async def follow_cluster() -> None:
        async with aclosing(cluster.admin.watch()) as snapshots:
            async for snapshot in snapshots:
                tally.see(snapshot, loop.time())
                view.cluster(snapshot)

    async def follow_decisions() -> None:
        async with aclosing(cluster.admin.watch_decisions(newest=50, model=MODEL)) as decisions:
            async for decision in decisions:
                view.decision(decision)

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.5 if view.live else 5.0)
            view.figures(headline(figures, loop.time() - began))

    await asyncio.gather(follow_cluster(), follow_decisions(), beat())


def headline(figures: Figures, elapsed_s: float) -> str:
    """The figures so far in one line; latencies over the last samples, so that its cost stays the same."""
    interactive, batches = figures.interactive, figures.batches
    ended = interactive.finished + interactive.failed
    met = f"{100 * interactive.met / ended:.1f} %" if ended else "-"
    ttft_ms, itl_ms = interactive.ttft_ms[-RECENT:], interactive.itl_ms[-RECENT:]
    return (
        f"{elapsed_s:5.1f} s: interactive {ended}/{interactive.requests} ended, {met} within SLO, "
        f"{interactive.outstanding} outstanding, TTFT p99 {_ms(percentile(ttft_ms, 99))}, "
        f"ITL p50 {_ms(percentile(itl_ms, 50))}; resumed {interactive.resumed}; "
        f"batch items handed in {batches.items}"
    )


def _number(result: dict[str, object], key: str) -> float | None:
    value = result[key]
    return float(value) if isinstance(value, int | float) else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
