"""What the global autoscaler's loop costs a controller that many nodes report to at 1 Hz.

The same cluster twice, once without a policy: CPU time per second of the controller's process.

python -m bench.autoscaled_nodes            # 200 nodes with 300 instances of three models
python -m bench.autoscaled_nodes --smoke    # the same code, small
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.simulated_nodes import SimulatedNode, eventually
from chiron.cluster import ClusterAdmin
from chiron.cluster.process import ServiceProcess
from chiron.v1 import cluster_pb2

_GPUS = 2
_MODELS = 3
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


async def measure(nodes: int, policy: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Runs one cluster; CPU as a share of one core over `seconds` once all is calm."""
    controller = await ServiceProcess.start(
        "controller",
        "services.global_controller",
        log=folder / f"controller-{policy}.log",
        settings={"listen": "127.0.0.1:0", "autoscaler.policy": policy},
    )
    simulated = [
        SimulatedNode(f"n{i:03d}", _GPUS, [str(controller.announced["address"])]) for i in range(nodes)
    ]
    each = nodes * _GPUS * 3 // 4 // _MODELS
    try:
        async with ClusterAdmin(str(controller.announced["address"])) as admin, asyncio.TaskGroup() as group:
            agents = [group.create_task(node.run()) for node in simulated]
            for index in range(_MODELS):
                await admin.apply_model(
                    cluster_pb2.ModelSpec(
                        name=f"m{index}",
                        engine="sim",
                        gpus_per_instance=1,
                        min_instances=each,
                        autoscaling=cluster_pb2.AutoscalingSpec(enabled=True),
                    )
                )
            await eventually(
                lambda: sum(len(node.running) for node in simulated) == each * _MODELS,
                120.0,
                "every instance runs",
            )
            await asyncio.sleep(5.0)
            spent, began = _cpu_s(controller.pid), time.monotonic()
            await asyncio.sleep(seconds)
            share = (_cpu_s(controller.pid) - spent) / (time.monotonic() - began)
            for agent in agents:
                agent.cancel()
    finally:
        controller.kill()
        await controller.wait()
    return {"policy": policy, "nodes": nodes, "instances": each * _MODELS, "cpu_share": round(share, 3)}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


async def _both(nodes: int, seconds: float, folder: Path) -> list[dict[str, Any]]:
    return [await measure(nodes, policy, seconds, folder) for policy in ("off", "chiron")]


def main() -> None:
    """Prints one JSON object for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="few nodes and short times")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    if options.smoke:
        options.nodes, options.seconds = 10, 1.0
    with tempfile.TemporaryDirectory() as folder:
        for figures in uvloop.run(_both(options.nodes, options.seconds, Path(folder))):
            print(json.dumps(figures))


if __name__ == "__main__":
    main()
