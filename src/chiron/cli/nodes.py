"""`chiron nodes`: list them, take a GPU out of use and back."""

from __future__ import annotations

import sys

from rich.console import Console

from chiron.cli.status import nodes_table, to_json
from chiron.cluster import ClusterAdmin
from chiron.v1 import cluster_pb2 as pb


async def list_nodes(controller: str, *, as_json: bool) -> int:
    """Prints every node with its GPUs."""
    async with ClusterAdmin(controller) as admin:
        snapshot = await admin.snapshot()
    if as_json:
        print(to_json(pb.ClusterSnapshot(nodes=snapshot.nodes)))
    else:
        console = Console()
        wide = console if console.is_terminal else Console(file=sys.stdout, width=1000)
        wide.print(nodes_table(snapshot), soft_wrap=not console.is_terminal)
    return 0


async def cordon(controller: str, node: str, gpu: int, *, cordoned: bool, reason: str = "") -> int:
    """Takes a GPU out of use or back; says what stands in its way still."""
    async with ClusterAdmin(controller) as admin:
        shown = await admin.set_gpu_cordon(node, gpu, cordoned=cordoned, reason=reason)
    state = "healthy and in use" if shown.healthy else shown.reason
    print(f"GPU {shown.index} of {node} ({shown.uuid}): {state}")
    return 0
