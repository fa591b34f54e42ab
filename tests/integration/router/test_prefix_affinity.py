"""Requests return to where the beginning of their prompt is cached: a real router, real sim workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chiron.client import Client
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.app import Router
from services.router.config import RouterConfig
from tests.integration.router.conftest import RunningRouter
from tests.support.fake_router_controller import FakeRouterController
from tests.support.wait import eventually
from tests.support.worker_process import violated_fields, worker_process

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = ("a", "b")
BATCH_SIZE = 4
SPEC = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": BATCH_SIZE,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.2},
}
MODES = pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])


class Cluster:
    """Two workers and a router before them."""

    def __init__(self, running: RunningRouter) -> None:
        self.running = running
        self.core = running.core

    async def idle(self) -> None:
        """Returns when no slot is taken or promised, as far as the router knows."""

        def nothing_runs() -> bool:
            counts = self.core.counts()
            views = self.core._models["m"].views()
            return not counts.reservations and not any(view.running for view in views) and len(views) == 2

        await eventually(nothing_runs, what="no slot is taken")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        controller = await FakeRouterController().start()
        stack.push_async_callback(controller.stop)
        controller.add("m")
        for name in NAMES:
            folder = tmp_path_factory.mktemp(name)
            worker = await stack.enter_async_context(worker_process(folder, SPEC, instance_id=name))
            controller.table.instances.append(
                control_pb2.RoutedInstance(
                    instance_id=name,
                    incarnation=7,
                    model="m",
                    address=worker.address,
                    role=types_pb2.ROLE_MIXED,
                    state=types_pb2.INSTANCE_STATE_READY,
                )
            )
        config = RouterConfig(
            listen="127.0.0.1:0",
            controller=(controller.address,),
            drain_timeout_s=0.0,
            report_interval_s=60.0,
        )
        router = Router(config)
        running = RunningRouter(router, await router.start())
        stack.push_async_callback(router.stop)
        stack.push_async_callback(running.channel.close)
        found = Cluster(running)
        await eventually(lambda: "m" in running.core._models and len(running.core._models["m"].views()) == 2)
        yield found


def document(name: str, characters: int = 3000) -> str:
    return (f"In the {name} of the sea there was a {name}. " * 200)[:characters]


@MODES
async def test_each_turn_of_a_conversation_returns_to_its_instance(cluster: Cluster, lookaside: bool) -> None:
    async with Client(cluster.running.address, lookaside=lookaside) as client:
        chats: dict[str, list[dict[str, str]]] = {}
        homes: dict[str, set[str]] = {}
        for turn in range(3):
            # Another order each time, so that nothing but the prefix can send them back.
            names = [f"{lookaside} {place}" for place in ("harbour", "island", "lagoon", "cove")]
            for name in names[turn:] + names[:turn]:
                await cluster.idle()
                chat = chats.setdefault(name, [{"role": "system", "content": document(name)}])
                chat.append({"role": "user", "content": f"Tell me more of the {name}, part {turn}."})
                answer = await client.complete(model="m", messages=chat, max_tokens=8)
                chat.append({"role": "assistant", "content": answer.text})
                homes.setdefault(name, set()).add(answer.timing.instance_id)
                cached = answer.usage.cached_prompt_tokens
                assert (cached > 0.8 * answer.usage.prompt_tokens) == (turn > 0), (name, turn, cached)
        assert [len(home) for home in homes.values()] == [1] * 4


@MODES
async def test_a_prefix_that_everybody_shares_melts_no_instance(cluster: Cluster, lookaside: bool) -> None:
    await cluster.idle()
    async with Client(cluster.running.address, lookaside=lookaside) as client, AsyncExitStack() as stack:
        prompt = document(f"hot {lookaside}")
        streams: list[Any] = []
        for number in range(2 * BATCH_SIZE):
            options = {"prompt": f"{prompt} {number}", "max_tokens": 2000, "ignore_eos": True}
            stream = await stack.enter_async_context(aclosing(client.generate(model="m", **options)))
            await anext(stream)
            streams.append(stream)
            running = {view.instance_id: view.running + view.reserved for view in views(cluster)}
            await eventually(lambda: sum(view.running for view in views(cluster)) == len(streams))
            running = {view.instance_id: view.running for view in views(cluster)}
            # The cache outweighs a quarter of the slots, and the one request that then is placed.
            assert abs(running["a"] - running["b"]) <= BATCH_SIZE // 4 + 1
        assert max(running.values()) == BATCH_SIZE


def views(cluster: Cluster) -> Any:
    return cluster.core._models["m"].views()


async def test_a_busy_home_sends_the_next_turn_elsewhere(cluster: Cluster) -> None:
    await cluster.idle()
    async with Client(cluster.running.address) as client, AsyncExitStack() as stack:
        turn = {"model": "m", "prompt": document("busy home"), "max_tokens": 4}
        home = (await client.complete(**turn)).timing.instance_id
        await cluster.idle()
        assert (await client.complete(**turn)).timing.instance_id == home
        # Others fill both alike, then those of one end.
        running: Counter[str] = Counter()
        streams = []
        for number in range(6):
            options = {"prompt": f"short {number}", "max_tokens": 2000, "ignore_eos": True}
            request = client.generate(model="m", **options)
            stream = await stack.enter_async_context(aclosing(request))
            await anext(stream)
            await eventually(lambda want=number + 1: sum(view.running for view in views(cluster)) == want)
            at = {view.instance_id: view.running for view in views(cluster)}
            where = next(name for name in NAMES if at[name] > running[name])
            running[where] += 1
            streams.append((where, stream))
        assert running == {"a": 3, "b": 3}
        for where, stream in streams:
            if where != home:
                await stream.aclose()
        await eventually(lambda: sum(view.running for view in views(cluster)) == 3)
        answer = await client.complete(**turn)
        assert answer.timing.instance_id != home
        assert answer.usage.cached_prompt_tokens == 0


async def test_hashes_that_are_none_are_refused_and_named(cluster: Cluster) -> None:
    for hashes, field in (
        ([b"8 bytes."] * 65, "prefix_hashes"),
        ([b"8 bytes.", b"short"], "prefix_hashes[1]"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cluster.running.stub.Route(pb.RouteRequest(model="m", prefix_hashes=hashes))
        assert reason_of(caught.value) == "INVALID_ARGUMENT"
        assert violated_fields(caught.value) == [field]


async def test_a_burst_of_one_new_prompt_is_not_kept_together(cluster: Cluster) -> None:
    await cluster.idle()
    async with Client(cluster.running.address) as client:
        prompt = document("burst")
        answers = await asyncio.gather(
            *(client.complete(model="m", prompt=f"{prompt} {number}", max_tokens=50) for number in range(8))
        )
        assert Counter(answer.timing.instance_id for answer in answers) == {"a": 4, "b": 4}
