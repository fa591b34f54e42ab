"""The PostgreSQL queue between several routers, and when its server dies or refuses."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from chiron.batch.contract import RefusedError, UnavailableError
from chiron.batch.opening import open_queue
from chiron.batch.postgres import PostgresBatchQueue
from chiron.batch.records import BatchState, Limits, Return
from tests.conformance.batch_cases import KEY, done, indexes, items, new_batch, sealed, session
from tests.support.postgres_server import PostgresServer
from tests.support.wait import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer(durable=True)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def url(server: PostgresServer) -> str:
    return f"{server.url}?schema=q{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def pair(url: str) -> AsyncIterator[tuple[PostgresBatchQueue, PostgresBatchQueue]]:
    """Two routers' queues, which are one."""
    first, second = await PostgresBatchQueue.open(url), await PostgresBatchQueue.open(url)
    yield first, second
    await first.close()
    await second.close()


Pair = tuple[PostgresBatchQueue, PostgresBatchQueue]


async def test_routers_that_open_an_empty_queue_together_make_it_once(url: str) -> None:
    queues = await asyncio.gather(*(open_queue(url, Limits()) for _ in range(4)))
    await sealed(queues[0])
    assert {(await queue.get(KEY)).state for queue in queues} == {BatchState.ACTIVE}
    for queue in queues:
        await queue.close()


async def test_a_claim_passes_over_what_another_router_is_claiming(pair: Pair, url: str) -> None:
    queue, _ = pair
    await sealed(queue)
    holder = await session(queue)
    other = await asyncpg.connect(url.partition("?")[0])
    async with other.transaction():
        # As a router does that has not committed its claim yet.
        await other.execute(f"SET LOCAL search_path TO {url.rpartition('=')[2]}")
        await other.fetch("SELECT 1 FROM items WHERE place < 2 FOR UPDATE")
        taken = await queue.claim(holder, KEY, "chat", 10)
    await other.close()
    assert indexes(taken) == [2, 3, 4]
    assert indexes(await queue.claim(holder, KEY, "chat", 10)) == [0, 1]


async def test_routers_work_off_a_batch_together_and_record_each_item_once(pair: Pair) -> None:
    await sealed(pair[0], items(*range(300)))

    async def work(queue: PostgresBatchQueue) -> int:
        holder, count = await session(queue), 0
        while claims := await queue.claim(holder, KEY, "chat", 7):
            assert not await queue.finish(holder, [done(claim) for claim in claims])
            count += len(claims)
        return count

    counts = await asyncio.gather(*(work(queue) for queue in pair for _ in range(3)))
    assert sum(counts) == 300
    batch = await pair[1].get(KEY)
    assert (batch.state, batch.counts.succeeded) == (BatchState.ENDED, 300)
    results = await pair[0].results(KEY, after=0, limit=1_000, most_bytes=1 << 30)
    assert sorted(one.index for one in results) == list(range(300))
    assert [one.number for one in results] == list(range(1, 301))


async def test_a_router_hears_what_another_one_changes(pair: Pair) -> None:
    writing, listening = pair
    await writing.create(new_batch())
    heard: set[object] = set()

    async def listen() -> None:
        async for keys in listening.changes():
            heard.update(keys)

    task = asyncio.create_task(listen())
    await writing.append(KEY, items(0, 1))
    await eventually(lambda: KEY in heard, what="the appended items are told of")
    heard.clear()
    await writing.seal(KEY, 2)
    await eventually(lambda: KEY in heard, what="the accepted batch is told of")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_what_a_router_hands_back_at_its_end_is_told_to_the_others(
    pair: Pair, one_by_one: bool
) -> None:
    leaving, staying = pair
    await sealed(leaving)
    holder = await session(leaving)
    claims = await leaving.claim(holder, KEY, "chat", 5)
    assert len(claims) == 5
    heard: set[object] = set()

    async def listen() -> None:
        async for keys in staying.changes():
            heard.update(keys)

    task = asyncio.create_task(listen())
    await eventually(lambda: KEY in heard, what="the claim is told of")
    heard.clear()
    if one_by_one:
        await leaving.put_back(holder, [Return(claim.lease, counts=False) for claim in claims])
    await leaving.end_session(holder)
    await leaving.close()
    await eventually(lambda: KEY in heard, what="what is free again is told of")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_server_that_dies_costs_nothing_that_was_accepted(pair: Pair, server: PostgresServer) -> None:
    queue, other = pair
    await queue.create(new_batch())
    await queue.append(KEY, items(0, 1))
    heard_any = asyncio.Event()
    said = 0

    async def listen() -> None:
        nonlocal said
        async for keys in other.changes():
            said += 1
            if said > 1 and not keys:
                heard_any.set()

    task = asyncio.create_task(listen())
    await eventually(lambda: said, what="the first word")
    server.kill()
    with pytest.raises(UnavailableError):
        await queue.append(KEY, items(2, 3))
    with pytest.raises(UnavailableError):
        await queue.get(KEY)
    server.start()

    async def again() -> bool:
        try:
            await queue.append(KEY, items(2, 3))
        except UnavailableError:
            return False
        return True

    await eventually(again, within_s=30.0, what="the server takes items again")
    # Whether the first call had reached it or not.
    batch = await queue.seal(KEY, 4)
    assert (batch.counts.received, batch.counts.queued) == (4, 4)
    await asyncio.wait_for(heard_any.wait(), 30.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_write_whose_answer_is_lost_may_be_made_again(pair: Pair, server: PostgresServer) -> None:
    queue, _ = pair
    await sealed(queue)
    holder = await session(queue)
    claims = await queue.claim(holder, KEY, "chat", 5)
    calls = [asyncio.create_task(queue.finish(holder, [done(claim)])) for claim in claims]
    server.kill()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert all(answer == [] or isinstance(answer, UnavailableError) for answer in answers)
    server.start()
    outcomes = [done(claim) for claim in claims]

    async def recorded() -> bool:
        with contextlib.suppress(UnavailableError):
            return list(await queue.finish(holder, outcomes)) == []
        return False

    await eventually(recorded, within_s=30.0, what="the outcomes are recorded")
    assert [one.number for one in await queue.results(KEY, after=0, limit=10, most_bytes=1 << 20)] == [
        *range(1, 6)
    ]
    assert (await queue.get(KEY)).counts.succeeded == 5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url.replace("/postgres", "/absent"), 'database "absent" does not exist'),
        (lambda url: url.replace("//chiron", "//stranger"), 'role "stranger" does not exist'),
        (lambda url: url.partition("?")[0] + "?schema=pg_own", "schema 'pg_own'"),
        (lambda url: url.replace("postgresql", "mysql"), "no batch queue is named"),
    ],
)
async def test_what_cannot_be_used_is_refused_with_the_reason(url: str, change: object, text: str) -> None:
    with pytest.raises(RefusedError, match=text):
        await open_queue(change(url), Limits())  # type: ignore[operator]


async def test_a_password_is_not_told(server: PostgresServer) -> None:
    with pytest.raises(RefusedError) as told:
        await open_queue(f"postgresql://u:hidden@127.0.0.1:{server.port}/absent", Limits())
    assert "hidden" not in str(told.value)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/none"):
        await open_queue("postgresql://u:hidden@127.0.0.1:1/none", Limits())


async def test_a_newer_schema_and_one_of_something_else_are_refused(url: str) -> None:
    queue = await PostgresBatchQueue.open(url)
    await queue.close()
    schema = url.rpartition("=")[2]
    db = await asyncpg.connect(url.partition("?")[0])
    await db.execute(f"UPDATE {schema}.queue_version SET version = 99")
    with pytest.raises(RefusedError, match="version 99"):
        await PostgresBatchQueue.open(url)
    await db.execute(f"CREATE SCHEMA other{schema}; CREATE TABLE other{schema}.own (a int)")
    with pytest.raises(RefusedError, match="holds tables, but no batch queue"):
        await PostgresBatchQueue.open(f"{url.partition('?')[0]}?schema=other{schema}")
    await db.close()
