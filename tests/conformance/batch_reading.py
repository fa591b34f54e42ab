"""Reading: what the conformance suite asks of pages, usage, units, changes and the clock."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from chiron.batch.contract import BatchQueue
from chiron.batch.records import Session
from tests.conformance.batch_cases import (
    KEY,
    Advance,
    BatchCase,
    OpenQueue,
    claim_one,
    done,
    item,
    items,
    new_batch,
    sealed,
    sweep_all,
)

SOON_S = 5.0


class BatchReadingSuite(BatchCase):
    """What is read of the queue."""

    async def test_pages_have_the_newest_first(self, queue: BatchQueue) -> None:
        for number in range(7):
            await queue.create(new_batch(f"b{number}"))
        await queue.create(new_batch("other", "other"))
        found: list[str] = []
        token = ""
        pages = 0
        while pages == 0 or token:
            page, token = await queue.page("acme", limit=3, token=token)
            assert len(page) <= 3
            found += [one.batch_id for one in page]
            pages += 1
        assert found == [f"b{number}" for number in reversed(range(7))]
        assert pages == 3
        assert await queue.page("nobody", limit=3) == ([], "")

    async def test_a_page_goes_on_where_the_last_one_stopped(self, queue: BatchQueue) -> None:
        for number in range(4):
            await queue.create(new_batch(f"b{number}"))
        _, token = await queue.page("acme", limit=2)
        await queue.create(new_batch("newer"))
        await queue.discard(("acme", "b2"))
        page, token = await queue.page("acme", limit=2, token=token)
        assert [one.batch_id for one in page] == ["b1", "b0"]
        assert token == ""

    async def test_a_page_of_what_is_open(self, queue: BatchQueue, holder: Session) -> None:
        for number in range(3):
            await sealed(queue, items(0), new_batch(f"b{number}"))
        await queue.finish(holder, [done(await claim_one(queue, holder, ("acme", "b1")))])
        page, token = await queue.page("acme", limit=2, open_only=True)
        assert ([one.batch_id for one in page], token) == (["b2", "b0"], "")
        page, _ = await queue.page("acme", limit=9)
        assert len(page) == 3

    @pytest.mark.parametrize("token", ["x", "1", "zz-00", "-1", "1-00000000", "é"])
    async def test_a_token_that_no_page_has_returned_is_refused(self, queue: BatchQueue, token: str) -> None:
        await queue.create(new_batch())
        with pytest.raises(ValueError, match="token"):
            await queue.page("acme", limit=1, token=token)

    async def test_a_token_of_another_tenant_is_refused(self, queue: BatchQueue) -> None:
        await queue.create(new_batch("b1"))
        await queue.create(new_batch("b2"))
        _, token = await queue.page("acme", limit=1)
        with pytest.raises(ValueError, match="token"):
            await queue.page("other", limit=1, token=token)

    async def test_usage_is_by_tenant(self, queue: BatchQueue) -> None:
        assert not await queue.usage()
        assert not await queue.usage("acme")
        await sealed(queue, items(0, 1))
        await sealed(queue, items(0), new_batch("b1", "other"))
        by_tenant = {one.tenant: one for one in await queue.usage()}
        assert {tenant: one.queued for tenant, one in by_tenant.items()} == {"acme": 2, "other": 1}
        assert await queue.usage("other") == [by_tenant["other"]]

    async def test_units_are_by_batch_and_model(self, queue: BatchQueue) -> None:
        first = dataclasses.replace(new_batch("b1"), priority=5, expire_late=True)
        await sealed(queue, [item(0), item(1, "other")], first)
        await sealed(queue, items(0), new_batch("b2", "tenant-2", 60.0))
        units = {(unit.batch[1], unit.model): unit for unit in await queue.units()}
        assert set(units) == {("b1", "chat"), ("b1", "other"), ("b2", "chat")}
        one = units["b1", "other"]
        kept = await queue.get(("acme", "b1"))
        assert (one.batch, one.deadline, one.expire_late) == (("acme", "b1"), kept.deadline, True)
        assert (one.priority, one.queued, one.prompt_tokens, one.max_tokens) == (5, 1, 11, 100)
        assert kept.created <= one.sealed <= await queue.now()
        assert units["b2", "chat"].batch == ("tenant-2", "b2")

    async def test_the_clock_never_goes_back(self, open_queue: OpenQueue, advance: Advance) -> None:
        queue = await open_queue()
        await queue.create(new_batch())
        first = await queue.now()
        await advance(10.0)
        second = await queue.now()
        assert second >= first + 10.0
        await queue.close()
        queue = await open_queue()
        assert await queue.now() >= second
        await queue.close()

    # Changes

    async def test_whoever_watches_first_hears_that_any_may_have_changed(self, queue: BatchQueue) -> None:
        changes = queue.changes()
        assert await asyncio.wait_for(anext(changes), SOON_S) == frozenset()

    async def test_changes_are_told_and_merged(self, queue: BatchQueue, holder: Session) -> None:
        changes = queue.changes()
        await asyncio.wait_for(anext(changes), SOON_S)
        other = ("acme", "b2")
        await queue.create(new_batch("b2"))
        await queue.append(other, items(0))
        await sealed(queue)
        await queue.claim(holder, KEY, "chat", 1)
        missing = {KEY, other}
        while missing:
            told = await asyncio.wait_for(anext(changes), SOON_S)
            missing = missing - told if told else set()

    async def test_each_write_that_changes_a_batch_is_told(self, queue: BatchQueue, holder: Session) -> None:
        changes = queue.changes()

        async def told() -> None:
            while True:
                keys = await asyncio.wait_for(anext(changes), SOON_S)
                if not keys or KEY in keys:
                    return

        await told()
        await queue.create(new_batch())
        await told()
        await queue.append(KEY, items(0, 1, 2))
        await told()
        await queue.seal(KEY, 3)
        await told()
        claim = await claim_one(queue, holder)
        await told()
        await queue.finish(holder, [done(claim)])
        await told()
        await queue.cancel(KEY)
        await told()
        await sweep_all(queue)
        await told()
        await queue.delete(KEY)
        await told()

    async def test_watchers_are_apart_and_end_with_the_queue(self, queue: BatchQueue) -> None:
        first, second = queue.changes(), queue.changes()
        await asyncio.wait_for(anext(first), SOON_S)
        await asyncio.wait_for(anext(second), SOON_S)
        await queue.create(new_batch())
        for watcher in (first, second):
            assert await asyncio.wait_for(anext(watcher), SOON_S) in ({KEY}, frozenset())
        waiting = asyncio.ensure_future(anext(first, None))
        await queue.close()
        assert await asyncio.wait_for(waiting, SOON_S) is None
        assert await asyncio.wait_for(anext(second, None), SOON_S) is None
        await queue.close()
