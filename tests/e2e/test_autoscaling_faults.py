"""Whatever dies, freezes or comes back while a fleet changes its size under load, no request is lost.

What the fleet should be is ordered through a file, so that each fault strikes in the midst of a change.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.workers import find_workers
from chiron.v1 import cluster_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.ordered_autoscaler import FILE_VARIABLE, NAME, order
from tests.support.wait import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

MODEL = "toy"
STREAMS = 10
TOKENS = 120
"""Of each answer: 2.5 s at 20 ms a step, so that a fault strikes streams."""
READY, DRAINING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_DRAINING
COMING = (types_pb2.INSTANCE_STATE_PENDING, types_pb2.INSTANCE_STATE_LOADING)
OVER = (types_pb2.INSTANCE_STATE_STOPPED, types_pb2.INSTANCE_STATE_FAILED)


class Fleet:
    """A cluster under steady load, and what was seen of it."""

    def __init__(self, cluster: LocalCluster, orders: Path) -> None:
        self.cluster = cluster
        self.finished = 0
        self.wrong: list[str] = []
        self._orders = orders

    def order(self, **roles: int) -> None:
        """What the fleet should be from now on."""
        order(self._orders, **{MODEL: roles})

    async def becomes(self, **roles: int) -> pb.ClusterSnapshot:
        """Returns once that is what serves, and nothing else is left on nodes that live."""

        def right(seen: pb.ClusterSnapshot) -> bool:
            live = {node.node_id for node in seen.nodes if node.live}
            left = [one for one in seen.instances if one.state not in OVER and one.node_id in live]
            return all(one.state == READY for one in left) and _roles(left) == Counter(roles)

        return await self.cluster.wait_for(right)

    async def settled(self) -> None:
        """Returns once every node's agent is connected to a controller that acts."""

        def right(seen: pb.ClusterSnapshot) -> bool:
            live = {node.node_id for node in seen.nodes if node.live}
            return live >= set(self.cluster.nodes) and not any(one.settling for one in seen.controllers)

        await self.cluster.wait_for(right)

    async def more(self, answers: int) -> None:
        """Returns once so many further answers have come whole."""
        goal = self.finished + answers
        await eventually(lambda: self.finished >= goal, within_s=60.0, what=f"{answers} further answers")
        assert self.wrong == []

    async def ask_on_and_on(self, client: Client) -> None:
        """One reader after the other, each of whom counts its tokens."""
        while True:
            try:
                answer = await client.complete(
                    model=MODEL, prompt="Tell me", max_tokens=TOKENS, ignore_eos=True
                )
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                return
            if answer.usage.completion_tokens != TOKENS:
                self.wrong.append(f"{answer.usage.completion_tokens} of {TOKENS} tokens")
            self.finished += 1

    async def watch_gpus(self) -> None:
        """Sees to it that no GPU ever has two owners who are awake."""
        while True:
            async with aclosing(self.cluster.admin.watch()) as snapshots:
                async for seen in snapshots:
                    owners = Counter(
                        (one.node_id, gpu)
                        for one in seen.instances
                        if one.state not in (*OVER, types_pb2.INSTANCE_STATE_SLEEPING)
                        for gpu in one.gpu_indexes
                    )
                    self.wrong += [f"{count} own GPU {gpu}" for gpu, count in owners.items() if count > 1]

    def leader(self, seen: pb.ClusterSnapshot) -> str:
        """Name of the process that leads."""
        leading = next(one.address for one in seen.controllers if one.leader)
        return next(
            name
            for name, process in self.cluster.processes.items()
            if process.announced.get("address") == leading
        )

    async def kill(self, name: str) -> None:
        """SIGKILL for a service, which its supervisor then starts again."""
        process = self.cluster.processes[name]
        process.kill()
        await process.wait()
        await self.cluster.start_again(name)


def _roles(instances: list[pb.InstanceStatus]) -> Counter[str]:
    return Counter(types_pb2.Role.Name(one.role).removeprefix("ROLE_").lower() for one in instances)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster_under_load(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("faults")
    order(folder / "orders.json", **{MODEL: {"mixed": 2}})
    settings = {
        "controller": {
            "autoscaler.policy": NAME,
            "autoscaler.interval_s": "0.2",
            "report_interval_ms": "300",
            "liveness_timeout_s": "4",
            "store.lease_s": "2",
            "drain_notice_s": "0.5",
        },
        "agent": {"stable_after_s": "0.5", "restart_backoff_s": "0.2"},
    }
    async with LocalCluster(
        nodes=2,
        gpus=3,
        controllers=2,
        etcd=True,
        directory=folder / "run",
        settings=settings,
        environ={FILE_VARIABLE: str(folder / "orders.json")},
    ) as cluster:
        spec = pb.ModelSpec(name=MODEL, engine="sim", gpus_per_instance=1, min_instances=1, max_batch_size=16)
        spec.engine_args.update({"profile": "toy", "time_scale": 10})
        spec.autoscaling.enabled = True
        spec.drain_timeout_s = 20
        await cluster.apply([spec])
        fleet = Fleet(cluster, folder / "orders.json")
        await fleet.becomes(mixed=2)
        async with Client(cluster.router_addresses) as client:
            asking = [asyncio.create_task(fleet.ask_on_and_on(client)) for _ in range(STREAMS)]
            watching = asyncio.create_task(fleet.watch_gpus())
            try:
                yield fleet
            finally:
                for task in (*asking, watching):
                    task.cancel()
                await asyncio.gather(*asking, watching, return_exceptions=True)


@pytest_asyncio.fixture(loop_scope="module")
async def fleet(cluster_under_load: Fleet) -> AsyncIterator[Fleet]:
    """Two mixed instances under load, before and after; nothing lost in between."""
    fleet = cluster_under_load
    fleet.order(mixed=2)
    await fleet.settled()
    await fleet.becomes(mixed=2)
    yield fleet
    await fleet.more(STREAMS)


async def test_the_leader_is_killed_in_the_midst_of_scaling_out(fleet: Fleet) -> None:
    fleet.order(mixed=5)
    seen = await fleet.cluster.wait_for(lambda seen: any(one.state in COMING for one in seen.instances))
    await fleet.kill(fleet.leader(seen))

    after = await fleet.becomes(mixed=5)

    assert after.term > seen.term
    await fleet.more(STREAMS)


async def test_an_agent_is_killed_while_its_instances_load(fleet: Fleet) -> None:
    fleet.order(mixed=6)
    seen = await fleet.cluster.wait_for(
        lambda seen: any(one.state == types_pb2.INSTANCE_STATE_LOADING for one in seen.instances)
    )
    loading = next(one for one in seen.instances if one.state == types_pb2.INSTANCE_STATE_LOADING)
    await fleet.kill(loading.node_id)

    await fleet.becomes(mixed=6)


async def test_a_worker_is_killed_while_it_drains(fleet: Fleet) -> None:
    fleet.order(mixed=4)
    await fleet.becomes(mixed=4)
    await fleet.more(STREAMS)
    fleet.order(mixed=2)

    def drains(seen: pb.ClusterSnapshot) -> list[pb.InstanceStatus]:
        return [one for one in seen.instances if one.state == DRAINING and one.load.running.interactive]

    seen = await fleet.cluster.wait_for(drains)
    victim = drains(seen)[0]
    workers = find_workers(fleet.cluster.node_directory(victim.node_id), victim.node_id)
    next(worker for worker in workers if worker.instance_id == victim.instance_id).kill()

    after = await fleet.becomes(mixed=2)

    assert victim.instance_id not in {one.instance_id for one in after.instances}


async def test_a_node_goes_and_comes_back(fleet: Fleet) -> None:
    fleet.order(mixed=3)
    before = await fleet.becomes(mixed=3)
    node = fleet.cluster.nodes[0]
    lost = {one.instance_id for one in before.instances if one.node_id == node}
    assert lost
    agent = fleet.cluster.processes[node]
    agent.signal(signal.SIGSTOP)
    for worker in find_workers(fleet.cluster.node_directory(node), node):
        worker.kill()
    await fleet.cluster.wait_for(lambda seen: _is_dead(seen, node))

    await fleet.becomes(mixed=3)
    await fleet.more(STREAMS)
    await fleet.kill(node)
    await fleet.settled()
    after = await fleet.becomes(mixed=3)

    assert lost.isdisjoint(one.instance_id for one in after.instances)


async def test_reports_that_stop_keep_the_fleet_as_it_is_and_operators_are_told(fleet: Fleet) -> None:
    fleet.order(mixed=4)
    before = await fleet.becomes(mixed=4)
    node = fleet.cluster.nodes[1]
    agent = fleet.cluster.processes[node]
    decided = len(await fleet.cluster.admin.decisions(limit=1000))
    agent.signal(signal.SIGSTOP)
    try:
        held = await fleet.cluster.wait_for(
            lambda seen: seen.models[0].autoscale.state == pb.AUTOSCALE_STATE_HOLDING
        )
        fleet.order(mixed=2)
        await fleet.cluster.wait_for(
            lambda seen: "retire" in seen.models[0].autoscale.reason or _is_dead(seen, node)
        )
        during = await fleet.cluster.admin.snapshot()
    finally:
        agent.signal(signal.SIGCONT)

    assert "s old" in held.models[0].autoscale.reason
    if not _is_dead(during, node):
        ids = {one.instance_id for one in before.instances}
        assert {one.instance_id for one in during.instances if one.state == READY} == ids
        newest = await fleet.cluster.admin.decisions(limit=1000)
        assert "retire" not in {one.action for one in newest[: len(newest) - decided]}
    await fleet.settled()
    await fleet.becomes(mixed=2)


async def test_a_node_that_comes_and_goes_starts_nothing_twice(fleet: Fleet) -> None:
    fleet.order(mixed=4)
    before = await fleet.becomes(mixed=4)
    agent = fleet.cluster.processes[fleet.cluster.nodes[1]]
    for _ in range(4):
        agent.signal(signal.SIGSTOP)
        await fleet.cluster.wait_for(lambda seen: any(node.report_age_ms > 1000 for node in seen.nodes))
        agent.signal(signal.SIGCONT)
        await fleet.cluster.wait_for(lambda seen: all(node.report_age_ms < 600 for node in seen.nodes))

    after = await fleet.becomes(mixed=4)

    assert {one.instance_id for one in after.instances} == {one.instance_id for one in before.instances}


async def test_roles_change_under_load_and_nothing_notices(fleet: Fleet) -> None:
    fleet.order(mixed=3)
    await fleet.becomes(mixed=3)
    for roles in ({"interactive": 2, "batch": 1}, {"mixed": 1, "interactive": 2}, {"mixed": 3}):
        fleet.order(**roles)
        await fleet.becomes(**roles)
        await fleet.more(STREAMS // 2)


def _is_dead(seen: pb.ClusterSnapshot, node_id: str) -> bool:
    return not next(node.live for node in seen.nodes if node.node_id == node_id)
