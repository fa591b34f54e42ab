"""Interactive requests take slots from batch work on real workers; what gave way goes on elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from chiron.client import Client
from chiron.v1 import types_pb2
from services.router.batch.settings import BatchSettings
from tests.support.batch_work import ended, hand_in, item, results
from tests.support.two_workers import SIM, TALE, Reading, know, load_of, router_of, set_role
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

INTERACTIVE, MIXED, BATCH = types_pb2.ROLE_INTERACTIVE, types_pb2.ROLE_MIXED, types_pb2.ROLE_BATCH
WORK = {**TALE, "request_class": "batch", "max_tokens": 400}
MODES = pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])


@pytest.fixture
def slots() -> int:
    """Of each worker."""
    return 1


@pytest.fixture
async def workers(tmp_path_factory, stack: AsyncExitStack, slots: int) -> dict[str, WorkerProcess]:
    """`mixed` takes both classes; `other` takes interactive requests until a test says otherwise."""
    found = {}
    for name in ("mixed", "other"):
        settings = {"instance_id": name, "spec_version": 1, "preemption.hand_back_s": 0.3}
        if name == "other":
            settings["role"] = "interactive"
        spec = {**SIM, "maxBatchSize": slots}
        process = worker_process(tmp_path_factory.mktemp(name), spec, **settings)
        found[name] = await stack.enter_async_context(process)
    for worker in found.values():
        await worker.until()
    return found


@pytest.fixture
def start(workers, controller, start_router):
    know(controller, workers)
    return partial(router_of, start_router)


@MODES
async def test_batch_work_gives_its_slot_up_and_goes_on_elsewhere(start, workers, lookaside) -> None:
    router = await start(max_queue_s=0.2)
    mixed, other = workers["mixed"], workers["other"]
    async with Client(router.address, lookaside=lookaside) as client:
        alone = await Reading(client, **WORK).task
        holder = Reading(client, **{**TALE, "max_tokens": 4000})
        await eventually(lambda: holder.tokens)
        work = Reading(client, **WORK)
        await eventually(lambda: len(work.tokens) > 20)
        urgent = Reading(client, **{**TALE, "max_tokens": 1500})
        await eventually(lambda: urgent.tokens)
        assert not work.task.done()
        # Nothing takes batch work now: it waits, for longer than one that nobody has handed back.
        await eventually(lambda: router.waiting() == (0, 1))
        until = asyncio.get_running_loop().time() + 0.4
        await eventually(lambda: asyncio.get_running_loop().time() > until)
        assert router.waiting() == (0, 1)
        assert (await load_of(mixed)).handed_back_requests == 1
        holder.task.cancel()
        await set_role(other, BATCH)
        assert await work.task == alone
        assert not urgent.task.done()
        assert len(await urgent.task) == 1500
        assert urgent.last.timing.instance_id == "mixed"
        assert work.last.timing.instance_id == "other"
        assert work.last.timing.preemptions == 1
        assert client.stats.failed == client.stats.throttled == 0
        # Neither the router's table nor its budget has seen a failure.
        assert not router.core.ejected(asyncio.get_running_loop().time())
        assert all(one.health.failures == 0 for one in router.core._instances.values())


async def test_an_item_of_the_batch_queue_that_gave_way_ends_once_with_its_tokens(
    start, workers, tmp_path: Path
) -> None:
    store = f"sqlite:{tmp_path / 'queue.db'}"
    settings = BatchSettings(store=store, checkpoint_s=0.2, checkpoint_tokens=16, retry_first_s=0.05)
    router = await start(batch=settings)
    part = router.router._batch
    async with Client(router.address) as client:
        work = {**WORK, "prompt": "Tell me about the sea, part 0."}
        alone = await Reading(client, **work).task
        holder = Reading(client, **{**TALE, "max_tokens": 4000})
        await eventually(lambda: holder.tokens)
        key = await hand_in(part.queue, [item(0, max_tokens=400)])
        part.runner.accepted(key)
        await eventually(lambda: any(one.answer.tokens > 20 for one in part.runner.work))
        urgent = Reading(client, **{**TALE, "max_tokens": 1500})
        await eventually(lambda: urgent.tokens)
        await eventually(lambda: router.waiting() == (0, 1))
        holder.task.cancel()
        await set_role(workers["other"], BATCH)
        batch = await ended(part.queue, key)
        assert batch.counts.succeeded == 1
        found = (await results(part.queue, key))[0]
        assert list(found.output.choices[0].token_ids) == alone
        assert (found.attempts, found.output.timing.instance_id) == (1, "other")
        assert found.output.timing.preemptions == 1
        assert len(await urgent.task) == 1500


@pytest.mark.parametrize("slots", [3])
async def test_changes_of_role_under_load_lose_nothing(start, workers, slots: int) -> None:
    router = await start()
    mixed, other = workers.values()
    changes = [(INTERACTIVE, BATCH), (BATCH, INTERACTIVE), (MIXED, MIXED), (INTERACTIVE, MIXED)]

    def work(client: Client, index: int) -> Reading:
        prompt = f"A long tale of {index}."
        return Reading(client, **{**WORK, "prompt": prompt, "max_tokens": 150 + 10 * index})

    async with Client(router.address) as reaching, Client(router.address, lookaside=False) as proxied:
        clients = (reaching, proxied)
        alone = [await work(proxied, index).task for index in range(4)]
        batch: list[Reading] = []
        urgent: list[Reading] = []
        for first, second in changes:
            batch.extend(work(clients[index % 2], index) for index in range(4))
            asked = {**TALE, "max_tokens": 120}
            fresh = [Reading(clients[index % 2], **asked) for index in range(4)]
            urgent.extend(fresh)
            await eventually(lambda fresh=fresh: any(one.tokens for one in fresh))
            await set_role(mixed, first)
            await set_role(other, second)
            # Routers hear it at once.
            await eventually(
                lambda first=first, second=second: (
                    [one.role for one in router.core._instances.values()] == [first, second]
                )
            )
            await asyncio.gather(*(one.task for one in urgent))
        await set_role(mixed, MIXED)
        assert [await one.task for one in batch] == alone * len(changes)
        assert {len(one.tokens) for one in urgent} == {120}
        assert not any(client.stats.failed or client.stats.throttled for client in clients)
        assert not router.core.ejected(asyncio.get_running_loop().time())
