"""Interactive requests take slots from batch work on real workers; what gave way goes on elsewhere."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chiron.client import Client
from chiron.internal.v1 import control_pb2
from chiron.internal.v1 import worker_pb2 as wpb
from chiron.v1 import types_pb2
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

SIM = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 1,
    "engineArgs": {"load_time_s": 0},
}
INTERACTIVE, MIXED, BATCH = types_pb2.ROLE_INTERACTIVE, types_pb2.ROLE_MIXED, types_pb2.ROLE_BATCH
TALE: dict[str, Any] = {"model": "m", "prompt": "Tell me a tale.", "temperature": 0.0, "ignore_eos": True}
WORK = {**TALE, "request_class": "batch", "max_tokens": 400}
MODES = pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])


@pytest.fixture
async def workers(tmp_path_factory, stack: AsyncExitStack) -> dict[str, WorkerProcess]:
    """`mixed` takes both classes; `other` takes interactive requests until a test says otherwise."""
    found = {}
    for name in ("mixed", "other"):
        settings = {"instance_id": name, "spec_version": 1, "preemption.hand_back_s": 0.3}
        if name == "other":
            settings["role"] = "interactive"
        process = worker_process(tmp_path_factory.mktemp(name), SIM, **settings)
        found[name] = await stack.enter_async_context(process)
    for worker in found.values():
        await worker.until()
    return found


@pytest.fixture
def start(workers, controller, start_router):
    controller.add("m", spec_version=1)
    for name, worker in workers.items():
        controller.table.instances.append(
            control_pb2.RoutedInstance(
                instance_id=name,
                incarnation=7,
                model="m",
                address=worker.address,
                role=MIXED,
                state=types_pb2.INSTANCE_STATE_READY,
                spec_version=1,
            )
        )

    async def start(**settings: Any):
        router = await start_router(retry_pause_s=0.05, **settings)
        await eventually(lambda: all(one.usable for one in router.core._instances.values()))
        return router

    return start


class Reading:
    """A stream that is read all the time."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.tokens: list[int] = []
        self.last: Any = None
        self.task = asyncio.create_task(self._read(client, options))

    async def _read(self, client: Client, options: dict[str, Any]) -> list[int]:
        async for chunk in client.generate(**options):
            assert chunk.first_token_index == len(self.tokens)
            self.tokens += chunk.token_ids
            self.last = chunk
        return self.tokens


async def load_of(worker: WorkerProcess) -> Any:
    async for statistics in worker.control.WatchStatistics(wpb.WatchStatisticsRequest()):
        return statistics.load
    raise AssertionError("the statistics ended")


@MODES
async def test_batch_work_gives_its_slot_up_and_goes_on_elsewhere(start, workers, lookaside) -> None:
    router = await start()
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
        # One router's request waits in it now; nothing takes batch work.
        await eventually(lambda: router.waiting() == (0, 1))
        assert (await load_of(mixed)).handed_back_requests == 1
        holder.task.cancel()
        await other.control.SetWorkerRole(wpb.SetWorkerRoleRequest(role=BATCH))
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
