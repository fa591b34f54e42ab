"""What is left once the load has ended and the faults are over: nothing may be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.soak.cluster import SoakCluster

SETTLE_S = 60.0
"""Time that the cluster has to come to rest."""
_LOOK_S = 0.5
_UNDER_WAY = (pb.ROLL_STATE_ROLLING, pb.ROLL_STATE_STALLED)


async def settle(cluster: SoakCluster, within_s: float = SETTLE_S) -> list[str]:
    """Waits until nothing is left to do; returns what still was when the time had passed."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        left = await unresolved(cluster)
        if not left or loop.time() > deadline:
            return left
        await asyncio.sleep(_LOOK_S)


async def unresolved(cluster: SoakCluster) -> list[str]:
    """What is not at rest now, one line each."""
    left = [f"{name} does not run" for name, service in cluster.services.items() if not service.up]
    left += [f"link {name} is not whole" for name, link in cluster.links.items() if not link.whole]
    snapshot = await cluster.snapshot()
    if snapshot is None:
        return [*left, "no controller leads"]
    left += unsettled(snapshot, agents=cluster.shape.agents, routers=cluster.shape.routers)
    sessions, instances = len(cluster.workers()), len(snapshot.instances)
    if sessions != instances:
        left.append(f"{sessions} workers run for {instances} instances")
    return left


def unsettled(snapshot: pb.ClusterSnapshot, *, agents: int, routers: int) -> Iterable[str]:
    """What a snapshot shows that is not at rest."""
    live = sum(node.live for node in snapshot.nodes)
    if live != agents:
        yield f"{live} of {agents} nodes live"
    if len(snapshot.routers) != routers:
        yield f"{len(snapshot.routers)} of {routers} routers are connected"
    for router in snapshot.routers:
        if waiting := router.queued.interactive + router.queued.batch:
            yield f"{waiting} requests wait in router {router.router_id}"
    for model in snapshot.models:
        if model.ready_instances != model.desired_instances:
            yield (
                f"{model.ready_instances} of {model.desired_instances} instances of {model.spec.name} "
                f"are ready {model.reason}".rstrip()
            )
        if model.roll.state in _UNDER_WAY:
            state = pb.RollState.Name(model.roll.state).removeprefix("ROLL_STATE_")
            yield f"the roll of {model.spec.name} is {state} {model.roll.reason}".rstrip()
    for instance in snapshot.instances:
        if instance.state != types_pb2.INSTANCE_STATE_READY:
            state = types_pb2.InstanceState.Name(instance.state).removeprefix("INSTANCE_STATE_")
            yield f"{instance.instance_id} is {state} {instance.reason}".rstrip()
        load = instance.load
        for what, counts in (("run", load.running), ("wait", load.waiting)):
            if count := counts.interactive + counts.batch:
                yield f"{count} requests {what} in {instance.instance_id}"
