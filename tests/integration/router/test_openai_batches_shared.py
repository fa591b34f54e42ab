"""Two routers on one PostgreSQL queue are one service for files and batches, also when one is killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from chiron.batch.records import Batch
from services.router.batch.settings import BatchSettings
from services.router.http.batches.making import Maker
from services.router.http.files.upload import CHUNK_BYTES
from tests.support.http_door import ANY, get, openai_at
from tests.support.openai_batches import CHAT, Hand, created, lines, once, read, uploaded
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


@pytest.fixture
async def pair(start_router, controller, server, stack: AsyncExitStack) -> tuple[Any, ...]:
    controller.add("m")
    settings = BatchSettings(store=f"{server.url}?schema=q{uuid.uuid4().hex[:12]}")
    return tuple([(await start_router(batch=settings, http=ANY)).router for _ in range(2)])


async def test_any_router_answers_for_any_file_and_batch(pair, stack: AsyncExitStack) -> None:
    first, second = [await stack.enter_async_context(openai_at(one.http_url)) for one in pair]
    content = lines(40) + b"\n" * (CHUNK_BYTES + 5)
    file = await uploaded(first, content)
    assert (await second.files.content(file.id)).content == content
    batch = await second.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="1h")
    await once(first, batch.id, "in_progress")
    hand = await Hand.on(pair[0]._batch.queue)
    claims = await hand.claim(batch.id)
    await hand.answer(*claims[1:])
    await hand.fail(claims[0])
    done, seen = await asyncio.gather(once(first, batch.id), once(second, batch.id))
    assert done == seen
    assert done.status == "completed"
    for client in (first, second):
        assert len(await read(client, done.output_file_id)) == 39
        assert (await read(client, done.error_file_id)).keys() == {"c0"}
    assert len([one async for one in second.files.list()]) == 3
    await second.files.delete(done.output_file_id)
    assert len([one async for one in first.files.list()]) == 2


async def test_a_router_goes_on_with_what_a_killed_one_has_begun(
    start_router, controller, server, stack: AsyncExitStack, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("services.router.http.batches.work.HOLD_S", 1.0)
    controller.add("m")
    store = f"{server.url}?schema=q{uuid.uuid4().hex[:12]}"
    settings = {"batch.store": store, "http.listen": "127.0.0.1:0"}
    other = (await start_router(batch=BatchSettings(store=store), http=ANY)).router
    async with router_process(tmp_path, controller.address, **settings) as router:

        async def healthy() -> bool:
            return (await get(router.http_url, "/health")).status == 200

        await eventually(healthy, what="the router serves")
        async with openai_at(router.http_url) as client:
            batch = await created(client, lines(1_000))
            await router.kill()
    client = await stack.enter_async_context(openai_at(other.http_url))
    running = await once(client, batch.id, "in_progress")
    assert running.request_counts.total == 1_000


async def test_a_batch_that_takes_long_is_left_to_whoever_reads_it(
    pair, stack: AsyncExitStack, monkeypatch
) -> None:
    monkeypatch.setattr("services.router.http.batches.work.HOLD_S", 0.3)
    readers: list[object] = []

    async def slowly(self: Maker, batch: Batch, owner: object) -> bool:
        readers.append(self)
        await asyncio.sleep(1.5)
        return await make(self, batch, owner)  # type: ignore[arg-type]

    make = Maker.make
    monkeypatch.setattr(Maker, "make", slowly)
    client = await stack.enter_async_context(openai_at(pair[0].http_url))
    batch = await created(client, lines(3))
    await once(client, batch.id, "in_progress")
    assert len(readers) == 1


async def test_two_that_make_the_same_batch_make_one(pair, stack: AsyncExitStack, monkeypatch) -> None:
    monkeypatch.setattr("services.router.http.batches.work.HOLD_S", -1.0)
    client: AsyncOpenAI = await stack.enter_async_context(openai_at(pair[0].http_url))
    made = [await created(client, lines(600)) for _ in range(3)]
    hand = await Hand.on(pair[0]._batch.queue)
    for batch in made:
        running = await once(client, batch.id, "in_progress")
        assert running.request_counts.total == 600
        claims = await hand.claim(batch.id)
        assert len({claim.custom_id for claim in claims}) == len(claims) == 600
        await hand.answer(*claims)
        done = await once(client, batch.id)
        assert len(await read(client, done.output_file_id)) == 600
    assert len([one async for one in client.files.list(purpose="batch_output")]) == 3
