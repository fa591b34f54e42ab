"""A cluster whose router is reachable from another host and whose workers are not.

python -m tests.system.serve ROUTER_HOST WORKER_HOST DIRECTORY
Prints the router's address as JSON once the model is ready; ends when stdin does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from chiron.cluster.local import LocalCluster
from chiron.v1 import cluster_pb2


async def _serve(router_host: str, worker_host: str, directory: str) -> None:
    cluster = LocalCluster(
        nodes=1,
        gpus=1,
        host=router_host,
        directory=Path(directory),
        settings={
            "agent": {"host": worker_host},
            "controller": {"auth.insecure": "true"},
            "router": {"auth.insecure": "true"},
        },
        drain_timeout_s=1.0,
    )
    async with cluster:
        await cluster.apply(
            [cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)]
        )
        await cluster.wait_ready()
        print(json.dumps({"address": cluster.router_addresses[0]}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
