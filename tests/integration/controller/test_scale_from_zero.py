"""A model that starts on demand: routers hold what comes, one load serves all, all hear of one that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from chiron.client import Client, Completion, NoInstance, Progress, SyncClient
from chiron.cluster import ClusterAdmin
from chiron.cluster.process import ServiceProcess
from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.rpc.servers import open_channel
from chiron.v1 import cluster_pb2
from services.global_controller import on_demand
from tests.integration.controller.conftest import Served
from tests.support.agent_process import AgentProcess
from tests.support.wait import eventually

LOAD_S = 1.5


@dataclass
class Cluster:
    """One node, two routers, a controller without instances."""

    served: Served
    routers: list[str]

    async def apply(self, name: str, gpus: int = 1, **engine_args: object) -> None:
        """Applies a model of which none runs and one starts when requests wait."""
        arguments = struct_pb2.Struct()
        arguments.update(engine_args)  # type: ignore[arg-type]
        await self.served.apply(
            name=name,
            gpus_per_instance=gpus,
            max_batch_size=64,
            engine_args=arguments,
            autoscaling=cluster_pb2.AutoscalingSpec(enabled=True),
        )
        for router in self.routers:
            await eventually(lambda router=router: _models(router))


@pytest.fixture
async def cluster(served: Served, tmp_path: Path) -> AsyncIterator[Cluster]:
    agent = AgentProcess(tmp_path, int(served.address.rpartition(":")[2]), gpus=2, max_restarts=0)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(agent.end)
        await agent.start()
        routers = []
        for number in range(2):
            router = await ServiceProcess.start(
                f"router-{number}",
                "services.router",
                log=tmp_path / f"router-{number}.log",
                settings={
                    "listen": "127.0.0.1:0",
                    "controller": served.address,
                    "router_id": f"router-{number}",
                    "drain_timeout_s": "0",
                    # What is told at once must not be what is told anyway.
                    "report_interval_s": "30",
                },
            )
            stack.push_async_callback(router.stop, 5.0)
            routers.append(str(router.announced["address"]))
        yield Cluster(served, routers)


async def _models(router: str) -> int:
    """How many models a router knows."""
    async with open_channel(router) as channel:
        state = await router_pb2_grpc.RouterServiceStub(channel).GetRouterState(
            router_pb2.GetRouterStateRequest()
        )
    return int(state.table.models)


async def _is_empty(served: Served) -> bool:
    """Whether nothing runs, and the one model is short of a place."""
    shown = await served.snapshot()
    return not shown.instances and "cannot be placed" in shown.models[0].reason


def in_order(told: list[Progress]) -> None:
    """What one request was told: that none runs, then how the load goes on."""
    assert told
    assert [one.waited_ms for one in told] == sorted(one.waited_ms for one in told)
    loads = [one for one in told if one.instance_id]
    assert loads
    assert len({one.instance_id for one in loads}) == 1
    assert [one.loading_ms for one in loads] == sorted(one.loading_ms for one in loads)
    assert "place" in told[0].text


async def test_one_load_serves_all_who_wait_at_every_router(cluster: Cluster) -> None:
    await cluster.apply("toy", load_time_s=LOAD_S)
    told: list[list[Progress]] = []

    def ask(client: Client) -> asyncio.Task[Completion]:
        mine: list[Progress] = []
        told.append(mine)
        return asyncio.create_task(
            client.complete(
                model="toy", prompt="a b c", max_tokens=4, ignore_eos=True, on_progress=mine.append
            )
        )

    def ask_blocking(router: str) -> str:
        mine: list[Progress] = []
        told.append(mine)
        with SyncClient(router) as client:
            return client.complete(
                model="toy", prompt="a b c", max_tokens=4, ignore_eos=True, on_progress=mine.append
            ).text

    async with AsyncExitStack() as stack:
        asked = []
        for router in cluster.routers:
            for lookaside in (True, False):
                client = await stack.enter_async_context(Client(router, lookaside=lookaside))
                asked += [ask(client) for _ in range(5)]
        blocking = asyncio.create_task(asyncio.to_thread(ask_blocking, cluster.routers[1]))
        leaver = ask(client)
        await eventually(lambda: all(any(one.instance_id for one in mine) for mine in told))
        leaver.cancel()
        completions = await asyncio.gather(*asked)
        text = await blocking
        await asyncio.gather(leaver, return_exceptions=True)

    assert len(completions) == 20
    assert [len(one.token_ids) for one in completions] == [4] * 20
    assert text
    snapshot = await cluster.served.snapshot()
    assert [one.model for one in snapshot.instances] == ["toy"]
    placed = await cluster.served.decisions("place")
    assert len(placed) == 1
    for mine in told:
        in_order(mine)
    # The wait is part of the time to first token.
    assert min(one.timing.ttft_ms for one in completions) > 0.5e3 * LOAD_S


async def test_a_load_that_fails_tells_everybody_why(cluster: Cluster) -> None:
    await cluster.apply("toy", fail_load="the weights are torn")
    async with (
        Client(cluster.routers[0], max_attempts=1) as lookaside,
        Client(cluster.routers[1], lookaside=False, max_attempts=1) as proxied,
    ):
        asked = [
            asyncio.create_task(client.complete(model="toy", prompt="a b c", max_tokens=4))
            for client in (lookaside, proxied, proxied)
        ]
        for one in asked:
            with pytest.raises(NoInstance, match="the weights are torn"):
                await one


async def test_a_model_for_which_there_is_no_gpu_keeps_nobody_waiting(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_demand, "_PATIENCE_S", 0.5)
    await cluster.apply("wide", gpus=3)
    async with Client(cluster.routers[0], max_attempts=1) as client:
        with pytest.raises(NoInstance, match="GPU"):
            await client.complete(model="wide", prompt="a b c", max_tokens=4, timeout_s=30)


async def test_requests_wait_for_a_model_whose_only_node_is_drained(cluster: Cluster) -> None:
    await cluster.apply("toy")
    told: list[Progress] = []
    async with ClusterAdmin(cluster.served.address) as admin, Client(cluster.routers[0]) as client:
        await client.complete(model="toy", prompt="a b c", max_tokens=4)
        [node] = (await cluster.served.snapshot()).nodes
        await admin.drain_node(node.node_id)
        await eventually(lambda: _is_empty(cluster.served))
        asked = asyncio.create_task(
            client.complete(model="toy", prompt="a b c", max_tokens=4, on_progress=told.append)
        )
        await eventually(lambda: asked.done() or told)
        assert not asked.done(), asked.result()
        await admin.drain_node(node.node_id, undo=True)
        assert len((await asked).token_ids) == 4


async def test_they_do_not_wait_for_ever(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "_PATIENCE_S", 0.5)
    await cluster.apply("toy")
    async with (
        ClusterAdmin(cluster.served.address) as admin,
        Client(cluster.routers[0], max_attempts=1) as client,
    ):
        await client.complete(model="toy", prompt="a b c", max_tokens=4)
        [node] = (await cluster.served.snapshot()).nodes
        await admin.drain_node(node.node_id)
        await eventually(lambda: _is_empty(cluster.served))
        with pytest.raises(NoInstance, match=r"no instance can be started|cannot be placed"):
            await client.complete(model="toy", prompt="a b c", max_tokens=4, timeout_s=30)
