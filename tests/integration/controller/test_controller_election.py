"""Three controllers on one etcd: one leads, the others say who, and a reign ends for good."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chiron.cluster import AdminError, ClusterAdmin
from chiron.internal.v1 import control_pb2, control_pb2_grpc
from chiron.rpc.errors import metadata_of, reason_of
from chiron.rpc.servers import open_channel
from chiron.rpc.streams import ending
from chiron.v1 import cluster_pb2
from tests.support.controller_process import ControllerProcess, Controllers, controllers, spec
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.fake_agent import FakeAgent
from tests.support.wait import eventually

_prefixes = count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


@pytest.fixture
async def three(etcd: EtcdServer, tmp_path: Path) -> AsyncIterator[Controllers]:
    async with controllers(tmp_path, [etcd.endpoint], f"store.prefix=/election/{next(_prefixes)}") as found:
        yield found


async def decided(process: ControllerProcess) -> list[str]:
    answer = await process.cluster.ListDecisions(cluster_pb2.ListDecisionsRequest(limit=1000))
    return [one.decision_id for one in answer.decisions]


async def snapshot(process: ControllerProcess) -> cluster_pb2.ClusterSnapshot:
    return (await process.cluster.GetSnapshot(cluster_pb2.GetSnapshotRequest())).snapshot


async def refusal(process: ControllerProcess) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await process.cluster.ApplyModel(cluster_pb2.ApplyModelRequest(spec=spec("refused")))
    return caught.value


async def hears_of(follower: ControllerProcess, leader: ControllerProcess) -> None:
    """Returns when a follower names the leader."""

    async def names_it() -> bool:
        return metadata_of(await refusal(follower)).get("leader") == leader.address

    await eventually(names_it, what=f"{follower.name} names {leader.name}")


async def test_one_leads_and_the_others_answer_every_call_with_its_address(three: Controllers) -> None:
    leader = await three.leader()
    for follower in three.others(leader):
        await hears_of(follower, leader)
        error = await refusal(follower)
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "NOT_LEADER")
        assert leader.address in (error.details() or "")
        async with open_channel(follower.address) as channel:
            stub = control_pb2_grpc.ControlServiceStub(channel)
            for stream, hello in (
                (
                    stub.ConnectAgent(),
                    control_pb2.ConnectAgentRequest(hello={"node_id": "a", "state_id": "s"}),
                ),
                (stub.ConnectRouter(), control_pb2.ConnectRouterRequest(hello={"router_id": "r"})),
            ):
                # The answer may be there before the first message is written.
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await stream.write(hello)
                assert metadata_of(await ending(stream))["leader"] == leader.address
            health = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="chiron.v1.ClusterService")
            )
            assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert not await follower.leads()
    shown = (await snapshot(leader)).controllers
    assert (shown[0].address, shown[0].leader) == (leader.address, True)
    assert {one.address for one in shown} == set(three.addresses)
    assert sum(one.leader for one in shown) == 1


async def test_a_killed_leader_s_successor_has_its_state_and_changes_nothing(three: Controllers) -> None:
    leader = await three.leader()
    async with three.admin() as admin:
        async with FakeAgent(leader.address, "a") as agent:
            await admin.apply_model(spec(instances=2))
            await agent.until(lambda agent: len(agent.wanted()) == 2)
            term, before = agent.welcome.term, await decided(leader)
        statuses = agent.statuses
        await leader.kill()
        successor = await three.leader()
        settling = (await snapshot(successor)).controllers[0]
        assert (settling.settling, list(settling.awaited_nodes)) == (True, ["a"])
        async with FakeAgent(successor.address, "a", highest_term=term) as agent:
            agent.statuses = statuses
            await agent.report()
            assert agent.welcome.term > term

            async def settled() -> bool:
                return not (await admin.snapshot()).controllers[0].settling

            await eventually(settled)
            shown = await admin.snapshot()
            assert sorted(one.instance_id for one in shown.instances) == sorted(statuses)
            assert [one.ready_instances for one in shown.models] == [2]
            assert await decided(successor) == before
            assert shown.term == agent.welcome.term == shown.controllers[0].term
            # What is asked of it from now on is carried out.
            await admin.delete_model("chat")
            await agent.until(lambda agent: agent.levels and not agent.levels[-1].instances)


async def test_a_leader_that_wakes_after_its_successor_has_begun_writes_nothing_more(
    three: Controllers,
) -> None:
    zombie = await three.leader()
    async with FakeAgent(zombie.address, "a") as agent, three.admin() as admin:
        await admin.apply_model(spec("first"))
        await agent.until(lambda agent: agent.wanted())
        zombie.signal(signal.SIGSTOP)
        successor = await three.leader(besides=zombie)
        await admin.apply_model(spec("second"))
        revision = (await snapshot(successor)).revision
        # Sent while it sleeps, read as soon as it wakes.
        asked = zombie.cluster.ApplyModel(cluster_pb2.ApplyModelRequest(spec=spec("third")))
        zombie.signal(signal.SIGCONT)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked
        assert reason_of(caught.value) == "NOT_LEADER"
        await hears_of(zombie, successor)
        # Its streams are closed for the same reason, so that who was tied to it finds the next one.
        assert await agent._call.code() is grpc.StatusCode.UNAVAILABLE
        shown = await snapshot(successor)
        assert [one.spec.name for one in shown.models] == ["first", "second"]
        assert shown.revision == revision
        # It has joined the others: it may lead again.
        for other in three.others(zombie):
            await other.kill()
        assert await three.leader() is zombie
        again = await snapshot(zombie)
        assert again.term > shown.term
        assert [one.spec.name for one in again.models] == ["first", "second"]


async def test_a_leader_that_is_told_to_stop_hands_over_before_its_lease_ends(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    # The lease outlives the test's own time limit.
    settings = (f"store.prefix=/election/{next(_prefixes)}",)
    async with controllers(tmp_path, [etcd.endpoint], *settings, count=2, lease_s=600) as two:
        leader = await two.leader()
        leader.signal(signal.SIGTERM)
        assert await leader.wait() == 0
        assert await two.leader(besides=leader) in two.others(leader)


async def test_when_nobody_leads_an_operator_is_told_so_in_one_line_that_names_all(
    three: Controllers,
) -> None:
    leader = await three.leader()
    await leader.kill()
    async with ClusterAdmin(three.addresses, timeout_s=0.3) as admin:
        with pytest.raises(AdminError) as caught:
            await admin.snapshot()
    said = str(caught.value)
    assert said.startswith(f"no controller that leads answers at {', '.join(three.addresses)} (")
    assert "\n" not in said
    async with three.admin(timeout_s=30.0) as admin:
        assert leader.address not in [one.address for one in (await admin.snapshot()).controllers]
