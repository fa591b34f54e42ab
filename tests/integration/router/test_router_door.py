"""A client that opens and cancels, or takes tickets for nothing, without end: others go on as ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest
import pytest_asyncio

from chiron.auth.api_keys import NewKey
from chiron.client import Client, Completion, TurnedAway
from chiron.internal.v1 import control_pb2, router_pb2, router_pb2_grpc
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import access_pb2, inference_pb2_grpc, types_pb2
from chiron.v1 import inference_pb2 as pb
from tests.support.churning_client import churning_client
from tests.support.fake_router_controller import FakeRouterController
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

SPEC = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 256,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.1},
}
LIMIT, AT_ONCE = 20, 50
ASKED = 60
MEMORY_MIB = 64
module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerProcess]:
    async with worker_process(tmp_path_factory.mktemp("worker"), SPEC, instance_id="a") as worker:
        await worker.until()
        yield worker
        await worker.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def controller(worker: WorkerProcess) -> AsyncIterator[FakeRouterController]:
    controller = FakeRouterController()
    controller.add("m")
    controller.table.instances.append(
        control_pb2.RoutedInstance(
            instance_id="a",
            incarnation=7,
            model="m",
            address=worker.address,
            role=types_pb2.ROLE_MIXED,
            state=types_pb2.INSTANCE_STATE_READY,
        )
    )
    await controller.start()
    yield controller
    await controller.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def router(controller: FakeRouterController, tmp_path: Path) -> AsyncIterator[RouterProcess]:
    settings = {"abandoned_per_s": LIMIT, "ticket_ttl_s": 0.5}
    async with router_process(tmp_path, controller.address, **settings) as router:
        await eventually(lambda: _ready(router))
        yield router


async def _ready(router: RouterProcess) -> bool:
    return [one.state for one in (await state(router)).instances] == [types_pb2.INSTANCE_STATE_READY]


async def state(router: RouterProcess) -> router_pb2.GetRouterStateResponse:
    stub = router_pb2_grpc.RouterServiceStub(router.channel)
    return await stub.GetRouterState(router_pb2.GetRouterStateRequest())


async def emptied(router: RouterProcess) -> None:
    async def empty() -> bool:
        counts = (await state(router)).counts
        return not (counts.calls or counts.streams or counts.reservations or counts.started)

    await eventually(empty)


def rss_mib(router: RouterProcess) -> float:
    return psutil.Process(router.process.pid).memory_info().rss / 2**20


@module_loop
async def test_others_go_on_beside_a_client_that_opens_and_cancels(router: RouterProcess) -> None:
    async with (
        Client(router.address, lookaside=False, max_attempts=1) as proxied,
        Client(router.address, max_attempts=1) as direct,
    ):
        for client in (proxied, direct):
            await client.complete(model="m", prompt="x", max_tokens=2, timeout_s=20)
        before = rss_mib(router)
        async with churning_client(router.address, "generate") as churn:
            await churn.turned_away()
            most = rss_mib(router)
            for number in range(ASKED):
                client = direct if number % 2 else proxied
                await client.complete(model="m", prompt="x", max_tokens=2, timeout_s=20)
                most = max(most, rss_mib(router))
            # What is opened at once and not given up is no harm, however much it is.
            answers = (
                proxied.complete(model="m", prompt="x", max_tokens=2, timeout_s=30)
                for _ in range(4 * AT_ONCE)
            )
            await asyncio.gather(*answers)
            told = await churn.stop()
        assert (proxied.stats.failed, direct.stats.failed) == (0, 0)
    assert set(told["refused"]) == {"TurnedAway"}
    assert not told["others"]
    assert told["refused"]["TurnedAway"] > AT_ONCE
    least, longest = told["pauses"]
    assert 1.0 <= least <= longest <= 20.0
    assert most - before < MEMORY_MIB, f"{most - before:.0f} MiB more"
    assert (await state(router)).counts.turned_away >= told["refused"]["TurnedAway"]
    assert "turning away calls of ipv4:127.0.0.1" in router.log
    await emptied(router)


@module_loop
async def test_who_leaves_its_tickets_unused_is_turned_away_and_others_are_not(
    router: RouterProcess, worker: WorkerProcess
) -> None:
    async with churning_client(router.address, "route") as churn, Client(router.address) as client:
        await churn.turned_away()
        for _ in range(10):
            await client.complete(model="m", prompt="x", max_tokens=2, timeout_s=20)
        told = await churn.stop()
        assert client.stats.failed == 0
    assert told["refused"]["TurnedAway"] > 0
    await emptied(router)
    await worker.idle()


@module_loop
async def test_a_client_that_has_given_up_much_waits_and_is_served(router: RouterProcess) -> None:
    async with Client(router.address, lookaside=False) as client:

        async def give_up() -> None:
            asked = {"max_tokens": 1000, "ignore_eos": True, "timeout_s": 0.9}
            async with client.generate(model="m", prompt="x", **asked) as stream:
                await anext(stream)

        async def turned_away() -> list[TurnedAway]:
            ends = await asyncio.gather(*(give_up() for _ in range(4 * AT_ONCE)), return_exceptions=True)
            return [end for end in ends if isinstance(end, TurnedAway)]

        async def served_after_a_pause() -> Completion | None:
            # There was no time left to wait for as long as the router asks.
            assert min(error.retry_after_s for error in await eventually(turned_away)) >= 1.0
            whole = await client.complete(model="m", prompt="x", max_tokens=2, timeout_s=30)
            # On a slow machine what was given up may have faded by now.
            return whole if whole.attempts > 1 else None

        whole = await eventually(served_after_a_pause, within_s=30)
    assert len(whole.choices[0].token_ids) == 2


@module_loop
async def test_tenants_on_one_connection_are_told_apart(
    controller: FakeRouterController, tmp_path: Path
) -> None:
    keys = {name: NewKey.draw() for name in ("wasteful", "careful")}
    for name, key in keys.items():
        controller.table.tenants.append(access_pb2.Tenant(name=name, models=["m"]))
        routed = control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant=name)
        controller.table.keys.append(routed)
    settings = {"abandoned_per_s": LIMIT, "auth.require": "true"}
    async with (
        router_process(tmp_path, controller.address, **settings) as router,
        open_channel(router.address) as channel,
    ):
        await eventually(lambda: _ready(router))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = pb.GenerateRequest(model="m", prompt="x", sampling=pb.SamplingParams(max_tokens=2))
        endless = pb.GenerateRequest(model="m", prompt="x")
        endless.sampling.max_tokens, endless.sampling.ignore_eos = 1000, True

        async def ask(name: str) -> str:
            call = stub.Generate(request, metadata=bearer_metadata(keys[name].text), timeout=20)
            try:
                while await call.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError as error:
                return reason_of(error)
            return "served"

        async def leave() -> None:
            call = stub.Generate(endless, metadata=bearer_metadata(keys["wasteful"].text))
            with suppress(grpc.aio.AioRpcError):
                await call.read()
            call.cancel()

        async def left_enough() -> bool:
            await asyncio.gather(*(leave() for _ in range(AT_ONCE)))
            return await ask("wasteful") == "TOO_MANY_ABANDONED"

        await eventually(left_enough)
        assert [await ask("careful") for _ in range(5)] == ["served"] * 5
        assert "turning away calls of wasteful" in router.log


@module_loop
async def test_a_call_without_a_request_is_told_so(router: RouterProcess) -> None:
    for method in ("Generate", "Route"):
        call = router.channel.stream_stream(f"/chiron.v1.InferenceService/{method}")()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == "the call has no request"
