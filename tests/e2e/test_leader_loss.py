"""A leader that is frozen, and one that wakes up too late: who was tied to it goes on under the next one."""

from __future__ import annotations

import signal
from pathlib import Path

from chiron.client import Client
from chiron.cluster import ClusterAdmin, LocalCluster
from chiron.cluster.process import ServiceProcess
from chiron.v1 import cluster_pb2 as pb
from tests.support.etcd_server import etcd_members


def toy(name: str = "toy") -> pb.ModelSpec:
    spec = pb.ModelSpec(name=name, engine="sim", gpus_per_instance=1, min_instances=1)
    spec.engine_args.update({"profile": "toy"})
    return spec


def process_at(cluster: LocalCluster, address: str) -> ServiceProcess:
    return next(one for one in cluster.processes.values() if one.announced.get("address") == address)


async def test_agents_and_routers_leave_a_frozen_leader_and_nothing_else_changes(tmp_path: Path) -> None:
    settings = {"controller": {"store.lease_s": "2"}}
    with etcd_members(tmp_path / "etcd") as [etcd]:
        async with LocalCluster(
            nodes=1,
            gpus=2,
            controllers=2,
            etcd_endpoints=[etcd.endpoint],
            settings=settings,
            directory=tmp_path / "run",
        ) as cluster:
            await cluster.apply([toy()])
            before = await cluster.wait_ready()
            zombie = process_at(cluster, before.controllers[0].address)
            others = [one for one in cluster.controller_addresses if one != before.controllers[0].address]
            zombie.signal(signal.SIGSTOP)
            try:
                async with (
                    ClusterAdmin(others, timeout_s=40.0) as admin,
                    Client(cluster.router_addresses) as client,
                ):
                    answer = await client.complete(model="toy", prompt="hi", max_tokens=4)
                    assert answer.usage.completion_tokens == 4
                    async for shown in admin.watch():
                        live = [node.node_id for node in shown.nodes if node.live]
                        if live and shown.routers and not shown.controllers[0].settling:
                            break
                    assert shown.term > before.term
                    assert [(one.instance_id, one.incarnation) for one in shown.instances] == [
                        (one.instance_id, one.incarnation) for one in before.instances
                    ]
                    assert shown.revision == before.revision
                    zombie.signal(signal.SIGCONT)
                    # What is asked for now reaches the agent from the new leader alone.
                    await admin.apply_model(toy("second"))
                    async for shown in admin.watch():
                        if (
                            all(model.ready_instances == 1 for model in shown.models)
                            and len(shown.models) == 2
                        ):
                            break
                    answer = await client.complete(model="second", prompt="hi", max_tokens=4)
                    assert answer.usage.completion_tokens == 4
                    assert shown.controllers[0].address in others
            finally:
                zombie.signal(signal.SIGCONT)
