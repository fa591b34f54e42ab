"""Whatever becomes of etcd: requests are served, `status` tells what is wrong, all is right afterwards."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chiron.client import Client
from chiron.cluster import AdminError, ClusterAdmin, LocalCluster
from chiron.v1 import cluster_pb2 as pb
from tests.support.chiron_command import chiron
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.wait import eventually


def toy(instances: int) -> pb.ModelSpec:
    spec = pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=instances)
    spec.engine_args.update({"profile": "toy"})
    return spec


class Troubled:
    """A cluster with an instance that serves, on an etcd that a test may harm."""

    def __init__(self, cluster: LocalCluster, client: Client, before: pb.ClusterSnapshot) -> None:
        self.cluster = cluster
        self.client = client
        self.before = before

    async def serve(self) -> None:
        """One whole request through the router."""
        answer = await self.client.complete(model="toy", prompt="hi", max_tokens=4)
        assert answer.usage.completion_tokens == 4

    async def told(self, condition: Callable[[str], object]) -> str:
        """What `chiron status` ends with while nobody leads, once it meets the condition; requests are served
        all the while."""
        said = ""

        async def meets() -> object:
            nonlocal said
            await self.serve()
            async with ClusterAdmin(self.cluster.controller_addresses, timeout_s=0.2) as admin:
                try:
                    await admin.snapshot()
                except AdminError as error:
                    said = str(error)
            return condition(said)

        await eventually(meets, within_s=30.0, what=f"an error of the kind expected, not {said!r}")
        return said

    async def shows(self, condition: Callable[[pb.ClusterSnapshot], object]) -> pb.ClusterSnapshot:
        """The first snapshot of a leader that meets the condition."""
        return await self.cluster.wait_for(condition)

    async def is_as_before(self) -> None:
        """The same instances serve under a leader that has settled, and nothing was decided meanwhile."""
        ids = sorted(one.instance_id for one in self.before.instances)
        after = await self.shows(
            lambda seen: (
                seen.store.state == pb.STORE_STATE_OK
                and not seen.controllers[0].settling
                and [node.live for node in seen.nodes] == [True]
                and seen.models[0].ready_instances == 1
            )
        )
        assert sorted(one.instance_id for one in after.instances) == ids
        assert [one.incarnation for one in after.instances] == [
            one.incarnation for one in self.before.instances
        ]
        assert after.revision == self.before.revision
        await self.serve()

    async def takes_changes(self) -> None:
        """What an operator asks for is done."""
        await self.cluster.admin.apply_model(toy(2))
        await self.cluster.wait_ready("toy")


@asynccontextmanager
async def troubled(folder: Path, *members: EtcdServer, controllers: int = 2) -> AsyncIterator[Troubled]:
    settings = {"controller": {"store.lease_s": "2", "liveness_timeout_s": "3", "report_interval_ms": "200"}}
    async with LocalCluster(
        nodes=1,
        gpus=2,
        controllers=controllers,
        etcd_endpoints=[member.endpoint for member in members],
        settings=settings,
        directory=folder / "run",
    ) as cluster:
        await cluster.apply([toy(1)])
        before = await cluster.wait_ready()
        async with Client(cluster.router_addresses) as client:
            yield Troubled(cluster, client, before)


async def test_etcd_frozen(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "etcd") as [etcd]:
        async with troubled(tmp_path, etcd) as cluster:
            etcd.signal(signal.SIGSTOP)
            said = await cluster.told(lambda said: "no member of etcd answers" in said)
            assert "the store is unavailable for" in said
            assert etcd.endpoint in said
            etcd.signal(signal.SIGCONT)
            await cluster.is_as_before()
            await cluster.takes_changes()


async def test_etcd_killed_and_started_again(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "etcd") as [etcd]:
        async with troubled(tmp_path, etcd) as cluster:
            await asyncio.to_thread(etcd.kill)
            await cluster.told(lambda said: "no member of etcd answers" in said)
            shown = await chiron("status", f"--controller={cluster.cluster.controller_address}")
            assert shown.status == 1
            rows = [" ".join(line.split()) for line in shown.stdout.splitlines()]
            addresses = cluster.cluster.controller_addresses
            assert [row for row in rows if row.endswith("answers, and does not lead")] == [
                f"{address} answers, and does not lead" for address in addresses
            ]
            [row] = [row for row in rows if row.startswith("etcd unavailable for")]
            assert f"no member of etcd answers: {etcd.endpoint}" in row
            assert "no controller leads (etcd: no member of etcd answers" in shown.stderr
            assert shown.stderr.count("\n") == 1
            await asyncio.to_thread(etcd.start)
            await cluster.is_as_before()


async def test_a_member_lost_and_the_history_compacted(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "etcd", 3) as members:
        async with troubled(tmp_path, *members) as cluster:
            lost = next(member for member in members if member.leads())
            await asyncio.to_thread(lost.kill)
            await cluster.serve()
            shown = await cluster.shows(lambda seen: seen.store.state == pb.STORE_STATE_DEGRADED)
            assert f"1 of 3 members of etcd do not answer: {lost.endpoint}" in shown.store.reason
            assert {one.address: one.answers for one in shown.store.endpoints}[lost.endpoint] is False
            await cluster.takes_changes()
            await asyncio.to_thread(lost.start)
            await cluster.shows(lambda seen: seen.store.state == pb.STORE_STATE_OK)

            # Everything but the present is dropped, and then someone else leads who has seen nothing yet.
            revision = members[0].control("get", "x", "-w", "json").partition('"revision":')[2]
            members[0].control("compact", revision.partition(",")[0])
            leader = cluster.before.controllers[0].address
            leads = await cluster.shows(lambda seen: seen.controllers)
            leader = leads.controllers[0].address
            killed = next(
                service
                for service in cluster.cluster.processes.values()
                if service.announced.get("address") == leader
            )
            killed.kill()
            await killed.wait()
            async with ClusterAdmin(cluster.cluster.controller_addresses, timeout_s=30.0) as admin:
                after = await admin.snapshot()
            assert after.controllers[0].address != leader
            assert after.models[0].desired_instances == 2
            assert len(after.instances) == 2
            await cluster.serve()


async def test_a_full_disk_stops_changes_alone(tmp_path: Path) -> None:
    with etcd_members(tmp_path / "etcd", options=["--quota-backend-bytes=2000000"]) as [etcd]:
        async with troubled(tmp_path, etcd) as cluster:
            admin = cluster.cluster.admin
            await asyncio.to_thread(_fill, etcd)
            shown = await cluster.shows(lambda seen: seen.store.state == pb.STORE_STATE_READ_ONLY)
            assert "alarm NOSPACE" in shown.store.reason
            assert "etcdctl alarm disarm" in shown.store.reason
            with pytest.raises(
                AdminError, match=r"nothing can be changed now: .*database space exceeded"
            ) as caught:
                await admin.apply_model(toy(2))
            assert caught.value.reason == "STORE_UNAVAILABLE"
            await cluster.serve()
            now = await admin.snapshot()
            # The lease needs no space: the leader and its streams are still there.
            assert now.term == cluster.before.term
            assert [node.live for node in now.nodes] == [True]
            table = await chiron("status", f"--controller={cluster.cluster.controller_address}")
            [row] = [line for line in table.stdout.splitlines() if line.startswith("etcd")]
            assert "read-only for" in row

            await asyncio.to_thread(_free, etcd)
            await cluster.is_as_before()
            await cluster.takes_changes()


def _fill(etcd: EtcdServer) -> None:
    for number in itertools.count():
        refused = etcd.control_fails("put", f"/elsewhere/{number}", "x" * 100_000)
        if refused:
            assert "database space exceeded" in refused
            return


def _free(etcd: EtcdServer) -> None:
    etcd.control("del", "--prefix", "/elsewhere/")
    revision = etcd.control("get", "x", "-w", "json").partition('"revision":')[2].partition(",")[0]
    etcd.control("compact", revision)
    etcd.control("defrag")
    etcd.control("alarm", "disarm")
