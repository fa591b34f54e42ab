"""Items of the durable queue on real worker processes: each gets its one result, whatever dies."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chiron.batch.opening import open_queue
from chiron.batch.records import Limits, NewItem
from chiron.client import Client, DeadlineOutlook
from chiron.internal.v1 import control_pb2, router_pb2, router_pb2_grpc, worker_pb2
from chiron.rpc.servers import open_channel
from chiron.v1 import batch_pb2, inference_pb2, types_pb2
from services.router.batch.settings import BatchSettings
from tests.support.batch_work import ended, hand_in, item, results
from tests.support.cutting_worker import Cuts, CuttingWorker
from tests.support.fake_router_controller import FakeRouterController
from tests.support.flaky_queue import FlakyQueue
from tests.support.router_process import router_process
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, slots, worker_process

SIM = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 8,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.2},
}
LONG = 600
NAMES = ("a", "b")


@pytest.fixture
async def workers(tmp_path_factory, stack: AsyncExitStack) -> list[WorkerProcess]:
    started = [
        await stack.enter_async_context(
            worker_process(tmp_path_factory.mktemp(name), SIM, instance_id=name, spec_version=1)
        )
        for name in NAMES
    ]
    for worker in started:
        await worker.until()
    return started


@pytest.fixture
async def cuts(workers, controller, stack) -> Cuts:
    """What reaches the workers, each behind a door that tells of resumed attempts."""
    cuts = Cuts()
    controller.add("m", spec_version=1)
    for name, worker in zip(NAMES, workers, strict=True):
        door = await stack.enter_async_context(CuttingWorker(worker.address, cuts))
        controller.table.instances.append(instance(name, door.address))
    return cuts


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'queue.db'}"


@pytest.fixture
def start(cuts, start_router, store, monkeypatch):
    """Starts a router on the queue, behind a door that a test can close."""

    async def start(report_interval_s: float = 1.0, **settings: Any):
        async def opened(url: str, limits: Limits) -> FlakyQueue:
            return FlakyQueue(await open_queue(url, limits))

        monkeypatch.setattr("services.router.batch.part.open_queue", opened)
        chosen = {"checkpoint_s": 0.2, "checkpoint_tokens": 16, "retry_first_s": 0.05, **settings}
        router = await start_router(
            retry_pause_s=0.05,
            report_interval_s=report_interval_s,
            batch=BatchSettings(store=store, **chosen),
        )
        await eventually(lambda: all(one.usable for one in router.core._instances.values()))
        part = router.router._batch
        part.address = router.address
        return part

    return start


def instance(name: str, address: str) -> control_pb2.RoutedInstance:
    return control_pb2.RoutedInstance(
        instance_id=name,
        incarnation=7,
        model="m",
        address=address,
        role=types_pb2.ROLE_MIXED,
        state=types_pb2.INSTANCE_STATE_READY,
        spec_version=1,
    )


def long_items(count: int) -> list[NewItem]:
    return [item(index, max_tokens=LONG) for index in range(count)]


def checkpoints(store: str) -> int:
    """Items with one, in a file that another process holds."""
    file = sqlite3.connect(f"file:{store.removeprefix('sqlite:')}?mode=ro", uri=True)
    try:
        return file.execute("SELECT count(*) FROM checkpoints").fetchone()[0]
    finally:
        file.close()


@dataclass
class ToldDemand:
    """What a controller has been told of batch work."""

    arrived: int = 0
    finished: int = 0
    failed: int = 0
    waited: int = 0
    """Most items in the queue's groups."""


def told(controller: FakeRouterController) -> ToldDemand:
    seen: ToldDemand = controller.__dict__.setdefault("told", ToldDemand())
    while not controller.reports.empty():
        report = controller.reports.get_nowait()
        for demand in report.demand:
            seen.arrived += demand.arrived.batch
            seen.finished += demand.finished.batch
            seen.failed += demand.failed.batch
        for model in report.batch_queue.models:
            seen.waited = max(seen.waited, sum(group.requests for group in model.groups))
    return seen


async def in_work(part, items: int, tokens: int = 0) -> None:
    """Waits until so many items run, each with so many tokens."""

    def there() -> bool:
        return sum(one.answer.tokens >= tokens for one in part.runner.work) >= items

    await eventually(there, what=f"{items} items run and have {tokens} tokens")


def whole(found: dict[int, batch_pb2.ItemResult], count: int, tokens: int) -> None:
    """Each item has one result, and a whole one."""
    assert found.keys() == set(range(count))
    for one in found.values():
        assert one.state == batch_pb2.ITEM_STATE_SUCCEEDED, one.error
        [choice] = one.output.choices
        assert len(choice.token_ids) == one.output.usage.completion_tokens == tokens
        assert choice.finish_reason == inference_pb2.FINISH_REASON_LENGTH


async def test_every_item_gets_its_result(start, controller) -> None:
    part = await start(report_interval_s=0.05)
    key = await hand_in(part.queue, [item(index, logprobs=1) for index in range(200)])
    part.runner.accepted(key)
    assert (await ended(part.queue, key)).counts.succeeded == 200
    found = await results(part.queue, key)
    whole(found, 200, 4)
    for index, one in found.items():
        assert one.custom_id == str(index)
        assert (one.output.model, one.output.spec_version, one.attempts) == ("m", 1, 1)
        assert one.output.timing.instance_id in NAMES
        assert len(one.output.choices[0].logprobs) == 4
        assert one.output.choices[0].text
    await eventually(lambda: told(controller).finished == 200)
    seen = told(controller)
    assert (seen.arrived, seen.failed) == (200, 0)
    assert seen.waited > 0, "what waited in the queue was told"


async def test_a_router_tells_of_its_queue_what_waits_what_runs_and_its_session(start) -> None:
    part = await start()
    key = await hand_in(part.queue, long_items(400))
    part.runner.accepted(key)
    queue = router_pb2.RouterBatchQueue()
    async with open_channel(part.address) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)

        async def look() -> router_pb2.RouterBatchQueue:
            queue.CopyFrom((await stub.GetRouterState(router_pb2.GetRouterStateRequest())).batch_queue)
            return queue

        async def partly() -> bool:
            return 0 < (await look()).running < 400 and 0 < queue.queued < 400

        await eventually(partly, what="some run and some wait")
        assert queue.units == 1
        assert queue.session == part.runner.sessions.current.session_id > 0
        assert queue.HasField("read_age_ms")
        await part.queue.cancel(key)

        async def over() -> bool:
            return ((await look()).queued, queue.running, queue.units) == (0, 0, 0)

        await eventually(over, what="nothing waits or runs")


async def test_an_item_whose_worker_dies_goes_on_and_its_result_is_the_same(start, workers, cuts) -> None:
    part = await start()
    key = await hand_in(part.queue, long_items(8))
    await in_work(part, 8, 20)
    workers[0].process.kill()
    batch = await ended(part.queue, key)
    found = await results(part.queue, key)
    whole(found, 8, LONG)
    assert cuts.resumes, "something was resumed"
    again = await hand_in(part.queue, long_items(8), batch_id="again")
    await ended(part.queue, again)
    undisturbed = await results(part.queue, again)
    for index, one in found.items():
        # A token is a function of those before it here.
        assert one.output.choices == undisturbed[index].output.choices
    assert batch.counts.completion_tokens == 8 * LONG


async def test_a_killed_router_loses_nothing_and_the_next_one_goes_on(
    cuts, controller, store, tmp_path, start
) -> None:
    queue = await open_queue(store, Limits())
    key = await hand_in(queue, [item(index, max_tokens=2000) for index in range(6)])
    await queue.close()
    settings = {"batch.store": store, "batch.checkpoint_s": 0.1, "batch.checkpoint_tokens": 8}
    async with router_process(tmp_path, controller.address, **settings) as router:
        await eventually(lambda: checkpoints(store) == 6, what="each item has a checkpoint")
        await router.kill()
    sent = len(cuts.attempts)
    part = await start()
    batch = await ended(part.queue, key)
    whole(await results(part.queue, key), 6, 2000)
    assert batch.counts.succeeded == 6
    resumed = [len(one.delivered_token_ids) for one in cuts.resumes]
    assert len(resumed) == len(cuts.attempts) - sent == 6
    assert min(resumed) >= 1, "each went on from its checkpoint"


async def test_a_router_that_stops_puts_its_items_back_as_they_are(start, store, cuts) -> None:
    part = await start()
    key = await hand_in(part.queue, long_items(6))
    await in_work(part, 6, 20)
    await part.stop(5.0)
    batch = await part.queue.get(key)
    assert (batch.counts.queued, batch.counts.running, batch.counts.ended) == (6, 0, 0)
    session = await part.queue.begin_session("test", 10.0)
    claims = await part.queue.claim(session, key, "m", 10)
    assert [claim.attempt for claim in claims] == [1] * 6, "what was not begun to fail does not count"
    assert all(claim.checkpoint for claim in claims)


async def test_what_ends_while_the_store_is_away_is_recorded_once_when_it_is_back(start) -> None:
    part = await start()
    key = await hand_in(part.queue, [item(index, max_tokens=60) for index in range(60)])
    await in_work(part, 8)
    part.queue.down = True
    before = part.queue.calls["claim"]
    await eventually(lambda: part.queue.failed["finish"] > 1 and not len(part.runner.work))
    assert part.queue.calls["claim"] == before, "nothing new is claimed"
    part.queue.down = False
    await ended(part.queue, key)
    whole(await results(part.queue, key), 60, 60)


async def test_what_was_written_though_its_answer_was_lost_counts_once(start) -> None:
    part = await start(session_ttl_s=0.6)
    key = await hand_in(part.queue, [item(index, max_tokens=10) for index in range(400)])
    await in_work(part, 8)
    part.queue.lose_answers = True
    await eventually(lambda: part.queue.failed["finish"] and part.queue.failed["claim"])
    part.queue.lose_answers = False
    batch = await ended(part.queue, key)
    whole(await results(part.queue, key), 400, 10)
    assert batch.counts.succeeded == 400
    assert part.runner.sessions.begun > 1, "claims that nobody knows of went back with their session"


async def test_a_lost_session_stops_its_items_and_each_is_done_once(start, workers) -> None:
    part = await start(session_ttl_s=0.6)
    key = await hand_in(part.queue, long_items(6))
    await in_work(part, 6, 20)
    lost = list(part.runner.work)
    await part.queue.queue.end_session(lost[0].session)
    await eventually(lambda: all(one.dropped for one in lost), what="they are stopped")
    await ended(part.queue, key)
    whole(await results(part.queue, key), 6, LONG)
    assert part.runner.work.counts.lost >= 6
    assert part.runner.work.counts.succeeded == 6


async def test_a_cancelled_batch_leaves_the_workers_at_once(start, workers) -> None:
    part = await start()
    key = await hand_in(part.queue, [item(index, max_tokens=4000) for index in range(40)])
    await in_work(part, 10, 5)
    await part.queue.cancel(key)
    await eventually(lambda: not len(part.runner.work), what="nothing runs")
    for worker in workers:
        await worker.idle()
    batch = await ended(part.queue, key)
    assert (batch.counts.cancelled, batch.counts.succeeded) == (40, 0)


async def test_a_deadline_ends_items_only_where_the_batch_says_so(start, controller) -> None:
    part = await start(report_interval_s=0.05)
    late = await hand_in(part.queue, long_items(4), batch_id="late", deadline_s=0.05)
    gone = await hand_in(
        part.queue,
        [item(index, max_tokens=4000) for index in range(40)],
        batch_id="gone",
        deadline_s=1.0,
        expire_late=True,
    )
    batch = await ended(part.queue, gone)
    assert (batch.counts.expired, batch.counts.running) == (40, 0)
    found = await results(part.queue, gone)
    assert {one.error.reason for one in found.values()} == {"DEADLINE_EXCEEDED"}
    batch = await ended(part.queue, late)
    assert (batch.counts.succeeded, batch.counts.late) == (4, 4)
    whole(await results(part.queue, late), 4, LONG)
    fine = await hand_in(part.queue, [item(index) for index in range(3)], batch_id="fine", deadline_s=600.0)
    await ended(part.queue, fine)
    met, missed = 0, 0

    def told() -> bool:
        nonlocal met, missed
        while not controller.reports.empty():
            for demand in controller.reports.get_nowait().demand:
                met, missed = met + demand.deadlines_met, missed + demand.deadlines_missed
        return met == 3

    await eventually(told, what="the met deadlines are reported")
    claimed = part.runner.work.counts
    assert missed == claimed.succeeded + claimed.failed - 3 >= 4, "items that expire unclaimed are left out"


async def test_an_item_that_is_refused_fails_alone_with_the_reason(start) -> None:
    part = await start()
    items = [item(0), item(1, stop=[""]), item(2)]
    key = await hand_in(part.queue, items)
    batch = await ended(part.queue, key)
    assert (batch.counts.succeeded, batch.counts.failed) == (2, 1)
    one = (await results(part.queue, key))[1]
    assert one.error.reason == "INVALID_ARGUMENT"
    assert "stop" in one.error.message


async def test_engines_are_full_and_little_waits_in_them(start, workers) -> None:
    part = await start()
    key = await hand_in(part.queue, [item(index, max_tokens=300) for index in range(60)])
    most = {"running": 0, "waiting": 0, "held": 0}

    async def watch(worker: WorkerProcess) -> None:
        request = worker_pb2.WatchStatisticsRequest(interval_ms=20)
        async for told in worker.control.WatchStatistics(request):
            most["running"] = max(most["running"], told.load.running.batch)
            most["waiting"] = max(most["waiting"], slots(told.load.waiting))
            most["held"] = max(most["held"], len(part.runner.work))

    watches = [asyncio.create_task(watch(worker)) for worker in workers]
    await ended(part.queue, key)
    for each in watches:
        each.cancel()
    await asyncio.gather(*watches, return_exceptions=True)
    assert most["running"] == 8, "an engine was full"
    assert most["waiting"] <= 2
    assert most["held"] <= 2 * 8 + 64


async def test_a_client_sees_a_batch_through_and_an_interactive_request_goes_before_it(
    start,
) -> None:
    part = await start()
    async with Client(part.address) as client:
        each = {"model": "m", "ignore_eos": True}
        prompts = [f"Part {index}." for index in range(60)]
        # Work enough that some of it waits for as long as is looked at.
        lasting = [{**each, "max_tokens": 2000, "prompt": prompt} for prompt in prompts]
        batch = await client.batch.submit(lasting, deadline_s=3600)
        await in_work(part, 16)
        answer = await client.complete(model="m", prompt="Now?", max_tokens=4, ignore_eos=True)
        assert answer.usage.completion_tokens == 4
        assert (await client.batch.get(batch.batch_id)).progress.queued > 0, "it waited for no batch item"
        seen = await eventually(lambda: expected(client, batch.batch_id), what="an end is expected")
        assert seen.progress.outlook is DeadlineOutlook.HOLDS
        assert seen.progress.estimated_end > seen.created
        await client.batch.cancel(batch.batch_id)
        short = [{**each, "max_tokens": 400, "prompt": prompt} for prompt in prompts]
        batch = await client.batch.submit(short, deadline_s=600)
        await client.batch.wait(batch.batch_id)
        found = [one async for one in client.batch.results(batch.batch_id)]
    assert sorted(one.index for one in found) == list(range(60))
    assert all(one.output is not None and one.output.text for one in found)


async def expected(client: Client, batch_id: str):
    batch = await client.batch.get(batch_id)
    return batch if batch.progress.estimated_end is not None else None
