"""Two routers on one PostgreSQL queue: each item once, also when one dies, and one queue in their reports."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from chiron.batch.opening import open_queue
from chiron.batch.records import Limits
from chiron.v1 import inference_pb2 as pb
from tests.support.batch_work import ended, hand_in, item, results
from tests.support.fake_worker import FakeWorker
from tests.support.postgres_server import PostgresServer
from tests.support.router_process import router_process
from tests.support.wait import eventually

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    try:
        made.start()
        yield made
    finally:
        made.close()


async def answer(worker: FakeWorker) -> None:
    """Answers every call with a token; each frees its slot at once."""
    while True:
        call = await worker.calls.get()
        last = pb.OutputDelta(
            token_ids=[1],
            text="x",
            finish_reason=pb.FINISH_REASON_LENGTH,
            usage=pb.Usage(prompt_tokens=1, completion_tokens=1),
            timing=pb.Timing(),
        )
        call.send(pb.GenerateResponse(deltas=[last]))
        call.finish()
        await call.ended.wait()
        worker.publish(started=[call.request.request_id], finished=[call.request.request_id])


async def test_a_killed_router_leaves_its_items_to_the_other(
    server, tmp_path, controller, start_worker, stack
) -> None:
    workers = [await start_worker(name) for name in ("a", "b")]
    controller.add("m", workers)
    queue = await open_queue(server.url, Limits())
    stack.push_async_callback(queue.close)
    key = await hand_in(queue, [item(index) for index in range(80)])
    settings = {"batch.store": server.url, "batch.session_ttl_s": 1.0, "report_interval_s": 0.05}
    routers = [
        await stack.enter_async_context(
            router_process(tmp_path, controller.address, router_id=name, **settings)
        )
        for name in ("r1", "r2")
    ]
    # Nobody answers yet, so that each of the two holds items.
    sessions = await eventually(lambda: holders(server.url, 2), what="both hold items")
    assert len(sessions) == 2
    named: set[str] = set()
    while len(named) < 1 or controller.reports.qsize():
        report = await asyncio.wait_for(controller.reports.get(), 10)
        named |= {report.batch_queue.queue_id} - {""}
    assert len(named) == 1, "it is one queue, whoever tells of it"
    await routers[0].kill()
    tasks = [asyncio.create_task(answer(worker)) for worker in workers]
    batch = await ended(queue, key, within_s=60)
    for task in tasks:
        task.cancel()
    assert batch.counts.succeeded == 80
    assert len(await results(queue, key)) == 80


async def holders(url: str, wanted: int) -> list[int]:
    """Sessions that hold items, once there are so many."""
    db = await asyncpg.connect(url)
    try:
        rows = await db.fetch("SELECT DISTINCT session FROM chiron_batch.items WHERE session IS NOT NULL")
    finally:
        await db.close()
    return [row["session"] for row in rows] if len(rows) >= wanted else []


async def test_the_name_of_a_shared_queue_needs_no_rights_of_its_own(server) -> None:
    db = await asyncpg.connect(server.url)
    await db.execute("CREATE ROLE plain LOGIN")
    await db.execute("CREATE SCHEMA plain AUTHORIZATION plain")
    await db.close()
    url = server.url.replace(server.url.split("//")[1].split("@")[0], "plain") + "?schema=plain"
    queue = await open_queue(url, Limits())
    again = await open_queue(url, Limits())
    other = await open_queue(server.url, Limits())
    assert queue.shared_name == again.shared_name != other.shared_name
    for each in (queue, again, other):
        await each.close()
