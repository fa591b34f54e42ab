"""Kills the controller that leads many nodes: when the next one has heard from them, and at what cost.

That nothing is placed, replaced or stopped because of it is checked.

python -m bench.failover            # 200 nodes with 300 instances, three controllers, a real etcd
python -m bench.failover --smoke    # the same code, small
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench.simulated_nodes import SimulatedNode, eventually
from chiron.cluster import ClusterAdmin
from chiron.cluster.local_etcd import start_etcd
from chiron.cluster.process import ServiceProcess
from chiron.rpc.servers import open_control_channel
from chiron.v1 import cluster_pb2, cluster_pb2_grpc

_GPUS = 2
_CONTROLLERS = 3
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class ScalingError(AssertionError):
    """Something was decided because another controller leads."""


async def failover(nodes: int, lease_s: int, liveness_s: float, folder: Path) -> dict[str, Any]:
    """Runs it once and returns the figures; times in seconds since the leader was killed.

    Raises ScalingError.
    """
    services: list[ServiceProcess] = []
    try:
        etcd = await start_etcd(folder)
        services.append(etcd)
        starts = (_controller(index, etcd, lease_s, liveness_s, folder) for index in range(_CONTROLLERS))
        started = await asyncio.gather(*starts)
        services += started
        controllers = {str(one.announced["address"]): one for one in started}
        simulated = [SimulatedNode(f"n{index:03d}", _GPUS, list(controllers)) for index in range(nodes)]
        async with (
            ClusterAdmin(list(controllers), timeout_s=lease_s + 20.0) as admin,
            asyncio.TaskGroup() as group,
        ):
            agents = [group.create_task(node.run()) for node in simulated]
            figures = await _measure(admin, controllers, simulated, liveness_s)
            for agent in agents:
                agent.cancel()
        return {"lease_s": lease_s, "liveness_timeout_s": liveness_s, **figures}
    finally:
        for service in reversed(services):
            service.kill()
            await service.wait()


async def _measure(
    admin: ClusterAdmin,
    controllers: dict[str, ServiceProcess],
    nodes: Sequence[SimulatedNode],
    liveness_s: float,
) -> dict[str, Any]:
    # A quarter of the GPUs is free: an instance that counted as lost would be replaced at once.
    instances = _GPUS * len(nodes) * 3 // 4
    began = time.monotonic()
    await eventually(lambda: all(node.reported_at for node in nodes), 60.0, "every node reports")
    spec = cluster_pb2.ModelSpec(name="m", engine="sim", gpus_per_instance=1, min_instances=instances)
    await admin.apply_model(spec)
    await eventually(
        lambda: sum(len(node.running) for node in nodes) == instances, 120.0, "every instance runs"
    )
    placed_s = time.monotonic() - began
    before = await _when_ready(admin, instances)
    leader = before.controllers[0].address
    decided = await _decisions(leader)

    killed_at = time.monotonic()
    spent = {address: _cpu_s(service.pid) for address, service in controllers.items()}
    controllers[leader].kill()
    term = before.term

    def reported() -> list[float]:
        return [
            min(new) for node in nodes if (new := [at for key, at in node.reported_at.items() if key > term])
        ]

    await eventually(lambda: len(reported()) == len(nodes), 120.0, "every node reports to the next leader")
    after = await _when_ready(admin, instances)
    successor = after.controllers[0].address
    all_reported = _cpu_s(controllers[successor].pid) - spent[successor]
    # A replacement would come once settling is over and silent nodes count as dead.
    await asyncio.sleep(2 * liveness_s)
    steady_from, steady_at = _cpu_s(controllers[successor].pid), time.monotonic()
    await asyncio.sleep(5.0)
    steady = (_cpu_s(controllers[successor].pid) - steady_from) / (time.monotonic() - steady_at)
    final = await admin.snapshot()
    _check(before, final, set(await _decisions(successor)) - set(decided), nodes)
    times = sorted(at - killed_at for at in reported())
    return {
        "nodes": len(nodes),
        "instances": instances,
        "place_all_s": round(placed_s, 2),
        "first_report_s": round(times[0], 2),
        "median_report_s": round(times[len(times) // 2], 2),
        "last_report_s": round(times[-1], 2),
        "new_leader_cpu_s": round(all_reported, 2),
        "steady_cpu_share": round(steady, 3),
        "decisions_after": 0,
    }


def _check(
    before: cluster_pb2.ClusterSnapshot,
    after: cluster_pb2.ClusterSnapshot,
    decided: set[str],
    nodes: Sequence[SimulatedNode],
) -> None:
    if decided:
        raise ScalingError(f"{len(decided)} decisions follow from the fail-over")
    ids = [{one.instance_id for one in shown.instances} for shown in (before, after)]
    if ids[0] != ids[1]:
        raise ScalingError(f"{len(ids[0] ^ ids[1])} instances differ")
    if stops := sum(node.stops for node in nodes):
        raise ScalingError(f"{stops} instances were told to stop")
    if not all(node.live for node in after.nodes):
        raise ScalingError("a node counts as dead")


async def _when_ready(admin: ClusterAdmin, instances: int) -> cluster_pb2.ClusterSnapshot:
    async for shown in admin.watch():
        [model] = shown.models
        if model.ready_instances == instances and not shown.controllers[0].settling:
            return shown
    raise AssertionError("a watch ends with an error")


async def _decisions(address: str) -> list[str]:
    async with open_control_channel(address) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        found: list[str] = []
        while True:
            request = cluster_pb2.ListDecisionsRequest(limit=500, before=found[-1] if found else "")
            page = (await stub.ListDecisions(request)).decisions
            found += [one.decision_id for one in page]
            if len(page) < 500:
                return found


async def _controller(
    index: int, etcd: ServiceProcess, lease_s: int, liveness_s: float, folder: Path
) -> ServiceProcess:
    return await ServiceProcess.start(
        f"controller-{index}",
        "services.global_controller",
        log=folder / f"controller-{index}.log",
        settings={
            "listen": "127.0.0.1:0",
            "store.kind": "etcd",
            "store.endpoints": str(etcd.announced["address"]),
            "store.lease_s": str(lease_s),
            "liveness_timeout_s": f"{liveness_s:g}",
            "decisions_kept": "10000",
        },
    )


def _cpu_s(pid: int) -> float:
    """CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def main() -> None:
    """Prints one JSON object; ends with status 1 when the fail-over had consequences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few nodes and short times")
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--lease", type=int, default=10, help="seconds")
    parser.add_argument("--liveness", type=float, default=5.0, help="seconds")
    options = parser.parse_args()
    if options.smoke:
        options.nodes, options.lease = 20, 2
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = uvloop.run(failover(options.nodes, options.lease, options.liveness, Path(folder)))
        except ScalingError as error:
            sys.exit(f"error: {error}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
