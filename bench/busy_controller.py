"""What one controller costs that leads many nodes with its autoscaler on: CPU, lateness, memory.

    python -m bench.busy_controller                  # 50, 100 and 200 nodes of 8 instances, on both stores
    python -m bench.busy_controller --profile FILE   # a profile of the controller's whole run
    python -m bench.busy_controller --quick          # the same code, small and short

Nodes and routers are simulated in this process; the controller is a real one in its own, watched by
bench/watched_controller.py. 20 models share the nodes, about 8 instances to each; demand rises and falls, so
that the autoscaler starts and retires instances all the time. Agents and routers report every second, the
autoscaler decides every second. CPU is the process's own, of one core, system time included. One JSON line
for each size and store; last the slopes of memory between sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.data_path import machine
from bench.simulated_nodes import SimulatedNode, eventually
from bench.simulated_routers import SimulatedDemand, run_router
from chiron.cluster import ClusterAdmin
from chiron.cluster.local_etcd import start_etcd
from chiron.cluster.process import ServiceProcess
from chiron.v1 import cluster_pb2, types_pb2

_PER_NODE, _GPUS = 8, 10
_ROUTERS = 4
_RUNNING_PER_INSTANCE = 200.0
_WAVE, _PERIOD_S = 0.1, 60.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


async def measure(
    nodes: int, models: int, store: str, seconds: float, rounds: int, folder: Path, profile: str = ""
) -> dict[str, Any]:
    """One size on one store: the figures of each round, and memory at the end."""
    await asyncio.to_thread(folder.mkdir)
    services: list[ServiceProcess] = []
    try:
        settings = {"listen": "127.0.0.1:0"}
        if store == "etcd":
            services.append(await start_etcd(folder))
            settings |= {"store.kind": "etcd", "store.endpoints": str(services[0].announced["address"])}
        notes = folder / "notes.jsonl"
        watched = {"CHIRON_BENCH_NOTES": str(notes), "CHIRON_BENCH_PROFILE": profile}
        log = folder / "controller.log"
        controller = await ServiceProcess.start(
            "controller", "bench.watched_controller", log=log, settings=settings, environ=watched
        )
        services.append(controller)
        address = str(controller.announced["address"])
        names = [f"m{index:02d}" for index in range(models)]
        each = nodes * _PER_NODE // models
        demand = SimulatedDemand(names, each * _RUNNING_PER_INSTANCE, _WAVE, _PERIOD_S)
        simulated = [SimulatedNode(f"n{index:03d}", _GPUS, [address], demand.work) for index in range(nodes)]
        async with ClusterAdmin([address], timeout_s=30.0) as admin, asyncio.TaskGroup() as group:
            empty_mb = _rss_mb(controller.pid)
            tasks = [group.create_task(node.run()) for node in simulated]
            tasks += [
                group.create_task(run_router(f"r{index}", [address], demand, _ROUTERS))
                for index in range(_ROUTERS)
            ]
            tasks.append(group.create_task(_count(demand, simulated)))
            await eventually(lambda: all(node.reported_at for node in simulated), 60.0, "every node reports")
            idle_mb = _rss_mb(controller.pid)
            for name in names:
                await admin.apply_model(_spec(name, each))
            await eventually(
                lambda: _instances(simulated) >= models * _fewest(each), 120.0, "the fewest instances run"
            )
            # Past the first loads, and until demand and fleet have been once through the wave.
            await asyncio.sleep(seconds)
            figures = [await _round(controller, admin, notes, seconds) for _ in range(rounds)]
            told = {
                "nodes": nodes,
                "instances": _instances(simulated),
                "models": models,
                "store": store,
                "cpu_share": [one["cpu_share"] for one in figures],
                "late_p99_ms": [one["late_p99_ms"] for one in figures],
                "late_max_ms": [one["late_max_ms"] for one in figures],
                "own_p99_ms": [one["own_p99_ms"] for one in figures],
                "own_max_ms": [one["own_max_ms"] for one in figures],
                "decisions": [one["decisions"] for one in figures],
                "load_average": [one["load_average"] for one in figures],
                "rss_mb": {"empty": empty_mb, "nodes": idle_mb, "instances": _rss_mb(controller.pid)},
            }
            for task in tasks:
                task.cancel()
        await controller.stop(10.0)
        return told
    finally:
        for service in reversed(services):
            service.kill()
            await service.wait()


async def _round(
    controller: ServiceProcess, admin: ClusterAdmin, notes: Path, seconds: float
) -> dict[str, Any]:
    before, began, unix_ms = _cpu_s(controller.pid), time.monotonic(), time.time() * 1e3
    await asyncio.sleep(seconds)
    ended = time.monotonic()
    share = (_cpu_s(controller.pid) - before) / (ended - began)
    found = [json.loads(line) for line in (await asyncio.to_thread(notes.read_text)).splitlines()]
    within = [one for one in found if began + 1 < one.get("at_s", 0.0) < ended]
    late, own = ([ms for one in within for ms in one[name]] for name in ("late_ms", "own_ms"))
    decisions = await admin.decisions(limit=500)
    acts = Counter(one.action for one in decisions if one.time.ToMilliseconds() >= unix_ms)
    return {
        "cpu_share": round(share, 3),
        "late_p99_ms": round(float(np.quantile(late, 0.99)), 1),
        "late_max_ms": round(max(late), 1),
        "own_p99_ms": round(float(np.quantile(own, 0.99)), 1),
        "own_max_ms": round(max(own), 1),
        "decisions": dict(acts),
        "load_average": os.getloadavg()[0],
    }


async def _count(demand: SimulatedDemand, nodes: list[SimulatedNode]) -> None:
    while True:
        demand.count(Counter(status.model for node in nodes for status in node.running.values()))
        await asyncio.sleep(0.5)


def _fewest(each: int) -> int:
    return max(1, each * 4 // 5)


def _spec(name: str, each: int) -> cluster_pb2.ModelSpec:
    return cluster_pb2.ModelSpec(
        name=name,
        engine="sim",
        gpus_per_instance=1,
        min_instances=_fewest(each),
        max_instances=max(2, each * 6 // 5),
        autoscaling=cluster_pb2.AutoscalingSpec(enabled=True),
        # Without one, requests might as well wait, and nothing would start.
        slo_defaults=cluster_pb2.SloDefaults(interactive=types_pb2.Slo(ttft_ms=1000.0)),
    )


def _instances(nodes: list[SimulatedNode]) -> int:
    return sum(len(node.running) for node in nodes)


def _cpu_s(pid: int) -> float:
    """CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def slopes(figures: list[dict[str, Any]]) -> dict[str, float]:
    """Memory for each node without instances and for each instance, in KB, by least squares over sizes."""
    nodes, instances = ([one[name] for one in figures] for name in ("nodes", "instances"))
    bare = [one["rss_mb"]["nodes"] for one in figures]
    added = [one["rss_mb"]["instances"] - one["rss_mb"]["nodes"] for one in figures]
    return {
        "kb_per_node": round(1e3 * float(np.polyfit(nodes, bare, 1)[0]), 1),
        "kb_per_instance": round(1e3 * float(np.polyfit(instances, added, 1)[0]), 1),
    }


async def run(options: argparse.Namespace) -> None:
    """Prints the figures."""
    print(json.dumps({"machine": machine(), "at": "start"}), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for store in options.stores:
            figures = []
            for nodes in options.nodes:
                place = Path(folder) / f"{store}-{nodes}"
                told = await measure(
                    nodes, options.models, store, options.seconds, options.rounds, place, options.profile
                )
                print(json.dumps(told), flush=True)
                figures.append(told)
            if len(figures) > 1:
                print(json.dumps({"store": store, **slopes(figures)}), flush=True)


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--stores", nargs="+", choices=("memory", "etcd"), default=["memory", "etcd"])
    parser.add_argument("--seconds", type=float, default=30.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", default="", help="file of the controller's profile")
    parser.add_argument("--quick", action="store_true", help="the same code, small and short")
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.models, options.stores = [4, 8], 2, ["memory"]
        options.seconds, options.rounds = 3.0, 1
    uvloop.run(run(options))


if __name__ == "__main__":
    main()
