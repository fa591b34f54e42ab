"""A worker that drains hands its streams over, on real workers: their readers cannot tell."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from chiron.client import Client
from chiron.internal.v1 import worker_pb2 as wpb
from chiron.v1 import types_pb2
from tests.support.two_workers import SIM, TALE, Reading, know, load_of, router_of, set_role
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

SPEC = {**SIM, "maxBatchSize": 8}
LONG = 900
TOLD = {**TALE, "max_tokens": LONG}
INTERACTIVE = types_pb2.ROLE_INTERACTIVE
MODES = pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
FAST = wpb.HandOverRequest(
    interactive_per_s=1e3, batch_per_s=1e3, tokens_per_s=1e7, prefill_tokens_per_s=1e6, valid_s=30.0
)
NO_LIMIT = wpb.DrainRequest(timeout_s=0.0)


@pytest.fixture
async def workers(tmp_path_factory, stack: AsyncExitStack) -> dict[str, WorkerProcess]:
    """`old` takes interactive requests; `new` does when a test says so."""
    found = {}
    for name in ("old", "new"):
        role = "interactive" if name == "old" else "batch"
        process = worker_process(
            tmp_path_factory.mktemp(name), SPEC, instance_id=name, spec_version=1, role=role
        )
        found[name] = await stack.enter_async_context(process)
    for worker in found.values():
        await worker.until()
    return found


@pytest.fixture
def routers(workers, controller, start_router):
    know(controller, workers)
    return lambda: router_of(start_router)


async def opened(worker: WorkerProcess) -> None:
    await set_role(worker, INTERACTIVE)


async def handed_over(worker: WorkerProcess) -> int:
    return (await load_of(worker)).handed_over_requests


async def reading(client: Client, count: int, **options: Any) -> list[Reading]:
    """So many streams, each with tokens."""
    found = [Reading(client, **{**TOLD, **options}) for _ in range(count)]
    await eventually(lambda: all(len(one.tokens) > 20 for one in found))
    return found


@MODES
async def test_streams_go_on_where_there_is_room_as_if_nothing_had_happened(
    routers, workers, lookaside
) -> None:
    router = await routers()
    old, new = workers["old"], workers["new"]
    async with Client(router.address, lookaside=lookaside) as client:
        alone = await Reading(client, **TOLD).task
        streams = await reading(client, 3)
        await opened(new)
        draining = old.control.Drain(NO_LIMIT)
        await old.until(types_pb2.INSTANCE_STATE_DRAINING)
        await old.control.HandOver(FAST)
        # Its work is over long before the streams are.
        assert (await draining).aborted == 0
        assert not any(one.task.done() for one in streams)
        assert await handed_over(old) == 3
        for one in streams:
            assert await one.task == alone
            assert one.last.timing.instance_id == "new"
            assert one.last.timing.preemptions == 0
        # Nothing has failed, and nobody's budget has paid for it.
        assert client.stats.failed == client.stats.throttled == client.stats.resumed == 0
        assert all(one.health.failures == 0 for one in router.core._instances.values())


async def test_what_no_other_engine_can_go_on_with_is_served_to_its_end(routers, workers) -> None:
    router = await routers()
    old, new = workers["old"], workers["new"]
    async with Client(router.address) as client:
        (moves,) = await reading(client, 1)
        stays = asyncio.create_task(
            client.complete(**{**TOLD, "n": 2, "temperature": 1.0, "max_tokens": 600})
        )
        await old.load_when(lambda load: load.running.interactive == 3)
        await opened(new)
        draining = old.control.Drain(NO_LIMIT)
        await old.until(types_pb2.INSTANCE_STATE_DRAINING)
        await old.control.HandOver(FAST)
        answer = await stays
        assert [len(choice.token_ids) for choice in answer.choices] == [600, 600]
        assert answer.timing.instance_id == "old"
        assert (await draining).aborted == 0
        assert await handed_over(old) == 1
        assert len(await moves.task) == LONG


async def test_without_a_grant_that_holds_the_drain_serves_to_the_end(routers, workers) -> None:
    router = await routers()
    old, new = workers["old"], workers["new"]
    async with Client(router.address) as client:
        (stays,) = await reading(client, 1)
        await opened(new)
        # Before the drain it means nothing, and what has lapsed neither.
        await old.control.HandOver(FAST)
        await old.control.HandOver(wpb.HandOverRequest())
        assert (await old.control.Drain(NO_LIMIT)).aborted == 0
        assert len(await stays.task) == LONG
        assert stays.last.timing.instance_id == "old"
        assert await handed_over(old) == 0


async def test_an_instance_that_dies_with_what_it_has_taken_over_loses_nothing(routers, workers) -> None:
    router = await routers()
    old, new = workers["old"], workers["new"]
    async with Client(router.address, lookaside=False) as client:
        alone = await Reading(client, **TOLD).task
        streams = await reading(client, 3)
        await opened(new)
        falling = old.control.Sleep(wpb.SleepRequest(level=1, drain_timeout_s=60.0))
        await old.until(types_pb2.INSTANCE_STATE_DRAINING)
        await old.control.HandOver(FAST)
        await old.until(types_pb2.INSTANCE_STATE_SLEEPING)
        assert (await falling).aborted == 0
        await old.control.Wake(wpb.WakeRequest())
        await old.until()
        new.process.kill()
        for one in streams:
            assert await one.task == alone
            assert one.last.timing.instance_id == "old"
        assert client.stats.failed == 0


async def test_a_router_that_goes_meanwhile_loses_nothing(routers, workers) -> None:
    first, second = await routers(), await routers()
    old, new = workers["old"], workers["new"]
    async with Client([first.address, second.address]) as client:
        alone = await Reading(client, **TOLD).task
        streams = await reading(client, 3)
        await opened(new)
        draining = old.control.Drain(NO_LIMIT)
        await old.until(types_pb2.INSTANCE_STATE_DRAINING)
        _, _ = await asyncio.gather(first.router.stop(), old.control.HandOver(FAST))
        assert (await draining).aborted == 0
        for one in streams:
            assert await one.task == alone
        assert client.stats.failed == 0


async def test_rates_that_are_no_rates_are_named(workers) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="tokens_per_s"):
        await workers["old"].control.HandOver(wpb.HandOverRequest(tokens_per_s=-1.0))
    with pytest.raises(grpc.aio.AioRpcError, match="control socket"):
        await workers["old"].network.HandOver(FAST)
