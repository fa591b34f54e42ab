"""A live local cluster against its own simulation, on one recorded workload.

    python -m bench.live_vs_sim [--demo | --duration 60 --autoscaled] [--seed 1] [--smoke] [--keep FOLDER]

A cluster with the sim engine serves interactive requests with a burst, and a batch, or what `chiron demo`
asks; its router records them and the cluster is watched. Then the recording is simulated on the same cluster,
and both are printed: a table on stderr, JSON on stdout, with the load average of the machine meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import struct_pb2
from rich.console import Console

from chiron.cli.demo.figures import Figures
from chiron.cli.demo.plan import make_plan
from chiron.cli.demo.run import AGENT, CONTROLLER, ITL_SLO_MS, SETTLE_S, TTFT_SLO_MS, demo_spec
from chiron.cli.demo.run import MODEL as DEMO_MODEL
from chiron.cli.demo.traffic import Traffic
from chiron.cli.sim_recorded import controller_config, recorded_scenario, simulate_recorded
from chiron.cli.status import to_json
from chiron.client import ChironError, Client, Slo
from chiron.cluster import LocalCluster
from chiron.sim.recorded.beside import Beside
from chiron.sim.recorded.cluster import read_cluster
from chiron.sim.recorded.requests import read_recording
from chiron.sim.recorded.settings import policy_of, unhosted
from chiron.sim.recorded.tables import beside_tables
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2

MODEL = "llama"
TTFT_MS, ITL_MS = 1500.0, 80.0
_DECISIONS = 500
_CONFIG = "chiron.toml"
_LOAD = "load_average.json"


@dataclass(frozen=True, slots=True)
class Plan:
    """One workload and the cluster that serves it."""

    duration_s: float
    rate_per_s: float
    burst_factor: float
    items: int
    deadline_s: float
    batch_size: int
    load_time_s: float
    autoscaled: bool
    seed: int


def spec(plan: Plan) -> pb.ModelSpec:
    """The model: the engine model of an 8B on an A100, with few slots so that few requests fill it."""
    arguments = struct_pb2.Struct()
    arguments.update({"profile": "llama3-8b@a100", "load_time_s": plan.load_time_s})
    made = pb.ModelSpec(
        name=MODEL,
        engine="sim",
        gpus_per_instance=1,
        engine_args=arguments,
        min_instances=1 if plan.autoscaled else 2,
        max_instances=4,
        max_batch_size=plan.batch_size,
        slo_defaults=pb.SloDefaults(interactive=types_pb2.Slo(ttft_ms=TTFT_MS, itl_ms=ITL_MS)),
    )
    # Limits of few slots are not what a local autoscaler is for.
    made.autoscaling.local = "off"
    if plan.autoscaled:
        made.autoscaling.enabled = True
    return made


def arrivals(plan: Plan) -> list[tuple[float, int, int]]:
    """(time, prompt tokens, output tokens) of the interactive requests; the middle third is the burst."""
    draw = random.Random(plan.seed)
    found: list[tuple[float, int, int]] = []
    at = 0.0
    while True:
        third = plan.duration_s / 3
        rate = plan.rate_per_s * (plan.burst_factor if third <= at < 2 * third else 1.0)
        at += draw.expovariate(rate)
        if at >= plan.duration_s:
            return found
        found.append((at, draw.randint(20, 200), min(400, max(2, round(draw.lognormvariate(3.6, 0.6))))))


@dataclass(frozen=True, slots=True)
class Job:
    """A cluster, its model and what is asked of it."""

    spec: pb.ModelSpec
    gpus: int
    """On each of two nodes."""
    settings: Mapping[str, Mapping[str, str]]
    """Service → key → value, of the configuration's file."""
    load: Callable[[Client], Awaitable[None]]


def synthetic(plan: Plan) -> Job:
    """The bench's own workload."""

    async def load(client: Client) -> None:
        await client.complete(model=MODEL, prompt_token_ids=[1], max_tokens=1)
        await _load(plan, client)

    return Job(spec(plan), 2, {}, load)


def demo(seed: int) -> Job:
    """What `chiron demo --no-kills` asks, of a cluster with its settings."""
    figures = Figures(ttft_slo_ms=TTFT_SLO_MS, itl_slo_ms=ITL_SLO_MS)

    async def load(client: Client) -> None:
        await Traffic(client, DEMO_MODEL, make_plan(seed), figures).run(SETTLE_S)
        for error in figures.errors:
            print(f"the load: {error}", file=sys.stderr)

    return Job(demo_spec(), 4, {"controller": CONTROLLER, "agent": AGENT}, load)


async def serve(job: Job, folder: Path) -> None:
    """Runs the cluster; leaves recording, snapshots, decisions and configuration in `folder`."""
    (folder / _CONFIG).write_text(
        "".join(
            f"[{service}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
            for service, keys in job.settings.items()
        )
    )
    loads = [os.getloadavg()[0]]
    async with LocalCluster(
        nodes=2,
        gpus=job.gpus,
        config=folder / _CONFIG,
        settings={"router": {"recording.path": str(folder / "recording")}},
        directory=folder / "run",
        batch_store="",
    ) as cluster:
        await cluster.apply([job.spec])
        await cluster.wait_ready()
        watching = asyncio.create_task(_watch(cluster, folder / "cluster.jsonl"))
        async with Client(cluster.router_addresses) as client:
            await job.load(client)
        loads.append(os.getloadavg()[0])
        (folder / _LOAD).write_text(json.dumps(loads))
        await asyncio.sleep(2.0)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        decisions = await cluster.admin.decisions(limit=_DECISIONS)
        answer = pb.ListDecisionsResponse(decisions=decisions)
        (folder / "decisions.json").write_text(to_json(answer))


async def _watch(cluster: LocalCluster, file: Path) -> None:
    with file.open("w") as out:
        async with aclosing(cluster.admin.watch()) as snapshots:
            async for snapshot in snapshots:
                out.write(to_json(snapshot) + "\n")
                out.flush()


async def _load(plan: Plan, client: Client) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    draw = random.Random(plan.seed + 1)

    async def ask(at: float, prompt: int, output: int) -> None:
        await asyncio.sleep(max(0.0, began + at - loop.time()))
        with suppress(ChironError):
            await client.complete(
                model=MODEL, prompt_token_ids=range(prompt), max_tokens=output, ignore_eos=True, timeout_s=120
            )

    batch = None
    if plan.items:
        work = [
            {
                "model": MODEL,
                "prompt_token_ids": list(range(draw.randint(50, 300))),
                "max_tokens": draw.randint(50, 150),
                "ignore_eos": True,
                "slo": Slo(),
            }
            for _ in range(plan.items)
        ]
        batch = await client.batch.submit(work, deadline_s=plan.deadline_s)
    await asyncio.gather(*(ask(*one) for one in arrivals(plan)))
    if batch is not None:
        async with asyncio.timeout(plan.deadline_s + 60):
            await client.batch.wait(batch.batch_id)


def compare(folder: Path) -> tuple[Beside, dict[str, Any]]:
    """Simulates what was recorded."""
    cluster = read_cluster(folder / "cluster.jsonl", folder / "decisions.json")
    recording = read_recording(folder / "recording", strict=True).without(unhosted(cluster))
    config = controller_config(folder / _CONFIG)
    scenario, reading = recorded_scenario(folder / "recording", recording, cluster, {}, 0, config)
    policy = policy_of(cluster, chiron=config.autoscaler.chiron)
    done, found = simulate_recorded(scenario, reading, policy, recording, cluster)
    loads = folder / _LOAD
    return found, {
        **found.to_json(),
        "policy": done.result.policy,
        "load_average": json.loads(loads.read_text()) if loads.exists() else None,
    }


def main() -> int:
    """Runs it; returns 0 where live and simulated agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of arrivals")
    parser.add_argument("--rate", type=float, default=4.0, help="interactive requests a second")
    parser.add_argument("--burst", type=float, default=3.0, help="factor on the rate in the middle third")
    parser.add_argument("--items", type=int, default=80, help="of the batch")
    parser.add_argument("--autoscaled", action="store_true", help="the global autoscaler sets the fleet")
    parser.add_argument("--demo", action="store_true", help="what `chiron demo` asks, on a cluster like its")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="leave recording, snapshots and decisions there")
    parser.add_argument("--only-compare", type=Path, help="simulate what an earlier run has kept")
    parser.add_argument("--smoke", action="store_true", help="a few seconds")
    options = parser.parse_args()
    plan = Plan(
        duration_s=4.0 if options.smoke else options.duration,
        rate_per_s=options.rate,
        burst_factor=options.burst,
        items=8 if options.smoke else options.items,
        deadline_s=2 * options.duration,
        batch_size=8,
        load_time_s=3.0,
        autoscaled=options.autoscaled,
        seed=options.seed,
    )
    folder = options.only_compare or options.keep or Path(tempfile.mkdtemp(prefix="live-vs-sim-"))
    folder.mkdir(parents=True, exist_ok=True)
    if options.only_compare is None:
        asyncio.run(serve(demo(options.seed) if options.demo else synthetic(plan), folder))
    found, told = compare(folder)
    Console(file=sys.stderr, width=160).print(beside_tables(found, "live beside simulated"))
    print(json.dumps(told))
    if options.keep is None and options.only_compare is None:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
