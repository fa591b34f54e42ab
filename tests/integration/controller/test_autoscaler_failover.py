"""A leader that dies in the middle of a scale-out leaves it half done, and nobody does it twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chiron.internal.v1 import control_pb2
from chiron.v1 import cluster_pb2, types_pb2
from tests.support.controller_process import controllers, spec
from tests.support.etcd_server import EtcdServer, etcd_members
from tests.support.fake_agent import FakeAgent
from tests.support.fake_router import FakeRouter
from tests.support.wait import eventually

LOADING, READY = types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY
WAITING = 7


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


@asynccontextmanager
async def burst(controller: str) -> AsyncIterator[None]:
    """A router at which requests wait, as long as the body runs."""

    async def report(router: FakeRouter) -> None:
        while True:
            queued = types_pb2.ClassCounts(interactive=WAITING)
            await router.report(chat=control_pb2.ModelDemand(model="chat", queued=queued))
            await asyncio.sleep(0.05)

    async with FakeRouter(controller) as router:
        reporting = asyncio.create_task(report(router))
        try:
            yield
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)


async def test_a_successor_goes_on_with_a_scale_out_and_starts_nothing_twice(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    settings = ("store.prefix=/failover", "autoscaler.interval_s=0.1")
    async with controllers(tmp_path, [etcd.endpoint], *settings, count=2) as found, found.admin() as admin:
        leader = await found.leader()
        wanted = spec(
            max_instances=6,
            initial_batch_size=2,
            autoscaling=cluster_pb2.AutoscalingSpec(enabled=True),
        )

        async def desired() -> int:
            [model] = await admin.list_models()
            return model.desired_instances

        async with FakeAgent(leader.address, "a", gpus=8, state=LOADING) as agent:
            await admin.apply_model(wanted)
            async with burst(leader.address):

                async def grown() -> bool:
                    return await desired() > 1

                await eventually(grown)
                # The agent has begun with some of them, or with all.
                await leader.kill()
            term, statuses = agent.welcome.term, agent.statuses
        before = {one.instance_id for one in agent.levels[-1].instances}
        successor = await found.leader()
        asked = await desired()
        async with (
            FakeAgent(successor.address, "a", gpus=8, state=LOADING, highest_term=term) as agent,
            burst(successor.address),
        ):
            agent.statuses = statuses
            await agent.report()

            async def ticked() -> bool:
                [model] = await admin.list_models()
                return model.autoscale.numbers["demand"] == WAITING and model.autoscale.tick_age_ms < 1000

            await eventually(ticked)
            await agent.until(lambda agent: len(agent.wanted()) == asked)
            for one in agent.statuses.values():
                one.state = READY
            agent.state = READY
            await agent.report()

            async def ready() -> bool:
                [model] = await admin.list_models()
                return model.ready_instances == asked

            await eventually(ready)
            # What loads counts as supply for the new leader too: it asks for no more than the old one did.
            assert await desired() == asked
            assert before <= {one.instance_id for one in agent.wanted()}
            held = Counter(gpu for one in agent.statuses.values() for gpu in one.gpu_indexes)
            assert len(held) == asked
            assert set(held.values()) == {1}
