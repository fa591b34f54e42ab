"""The SDK's batches against BatchService on a real port and a real queue."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chiron.batch.records import Limits
from chiron.client import (
    Batch,
    BatchExists,
    BatchNotFound,
    BatchState,
    Client,
    InvalidRequest,
    ItemState,
    LatePolicy,
    MalformedItem,
    NoBatchQueue,
    SyncClient,
    WrongBatchState,
)
from tests.support.batch_service import BatchService, batch_service, items
from tests.support.wait import eventually


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BatchService]:
    async with batch_service(tmp_path) as running:
        yield running


@pytest.fixture
async def client(service: BatchService) -> AsyncIterator[Client]:
    async with Client(service.address, batch_patience_s=10) as connected:
        yield connected


async def test_a_batch_is_handed_in_worked_on_and_read(service: BatchService, client: Client) -> None:
    told: list[int] = []
    batch = await client.batch.submit(
        [{**one, "custom_id": f"q{n}"} for n, one in enumerate(items(1200))],
        deadline_s=3600,
        on_late="expire",
        priority=-3,
        metadata={"team": "eval"},
        count=1200,
        sent=told.append,
    )
    assert batch.state is BatchState.ACTIVE
    assert (batch.on_late, batch.priority, batch.metadata) == (LatePolicy.EXPIRE, -3, {"team": "eval"})
    assert (batch.deadline - batch.created).total_seconds() == pytest.approx(3600)
    assert batch.progress.queued == 1200
    assert told[-1] == 1200
    assert told == sorted(told)

    await service.complete(batch.batch_id)
    results = [result async for result in client.batch.results(batch.batch_id)]
    assert [result.number for result in results] == list(range(1, 1201))
    assert sorted(result.index for result in results) == list(range(1200))
    for result in results:
        assert result.state is ItemState.SUCCEEDED
        assert result.output is not None
        assert result.output.text == f"answer to q{result.index}"
    ended = await client.batch.get(batch.batch_id)
    assert ended.state is BatchState.ENDED
    assert (ended.progress.succeeded, ended.progress.completion_tokens) == (1200, 3600)
    assert ended.expires is not None

    (usage,) = await client.batch.usage()
    assert (usage.tenant, usage.succeeded, usage.open_batches) == ("", 1200, 0)
    await client.batch.delete(batch.batch_id)
    with pytest.raises(BatchNotFound):
        await client.batch.get(batch.batch_id)


async def test_results_are_read_after_a_number_or_of_one_item(service: BatchService, client: Client) -> None:
    batch = await client.batch.submit(items(10), deadline_s=60)
    await service.complete(batch.batch_id)
    assert [r.number async for r in client.batch.results(batch.batch_id, after=7)] == [8, 9, 10]
    assert [r.number async for r in client.batch.results(batch.batch_id, after=10)] == []
    (one,) = [r async for r in client.batch.results(batch.batch_id, custom_id="4")]
    assert one.index == 4
    assert [r async for r in client.batch.results(batch.batch_id, custom_id="none")] == []


async def test_following_brings_results_as_they_come_until_the_end(
    service: BatchService, client: Client
) -> None:
    batch = await client.batch.submit(items(30), deadline_s=60)
    seen: list[int] = []

    async def follow() -> None:
        async for result in client.batch.results(batch.batch_id, follow=True):
            seen.append(result.number)  # noqa: PERF401  # Read while it grows.

    following = asyncio.create_task(follow())
    await service.finish(await service.claim(batch.batch_id, 10))
    await eventually(lambda: len(seen) == 10)
    assert not following.done()
    await service.complete(batch.batch_id)
    await following
    assert seen == list(range(1, 31))


async def test_a_watch_ends_with_the_batch(service: BatchService, client: Client) -> None:
    batch = await client.batch.submit(items(20), deadline_s=60)
    told: list[Batch] = []

    async def watch() -> None:
        async for seen in client.batch.watch(batch.batch_id):
            told.append(seen)  # noqa: PERF401  # Read while it grows.

    watching = asyncio.create_task(watch())
    await eventually(lambda: told)
    await service.finish(await service.claim(batch.batch_id, 5))
    await eventually(lambda: told[-1].progress.ended == 5)
    await service.complete(batch.batch_id)
    await watching
    assert (told[0].state, told[0].progress.ended) == (BatchState.ACTIVE, 0)
    assert (told[-1].state, told[-1].progress.ended) == (BatchState.ENDED, 20)
    assert all(one != other for one, other in itertools.pairwise(told))


async def test_cancelling_ends_what_has_no_result(service: BatchService, client: Client) -> None:
    batch = await client.batch.submit(items(5), deadline_s=60)
    await service.finish(await service.claim(batch.batch_id, 2))
    with pytest.raises(WrongBatchState):
        await client.batch.delete(batch.batch_id)
    assert (await client.batch.cancel(batch.batch_id)).cancelled
    while (await service.queue.sweep()).again_s == 0:
        pass
    ended = await client.batch.wait(batch.batch_id)
    assert (ended.progress.succeeded, ended.progress.cancelled) == (2, 3)
    last = [r async for r in client.batch.results(batch.batch_id)][-1]
    assert last.state is ItemState.CANCELLED
    assert last.error is not None
    assert last.error.reason == "CANCELLED"


async def test_what_expires_at_the_deadline_says_so(service: BatchService, client: Client) -> None:
    batch = await client.batch.submit(items(3), deadline_s=0.05, on_late="expire")
    waiting = asyncio.create_task(client.batch.wait(batch.batch_id))
    while not waiting.done():
        await service.queue.sweep()
        await asyncio.sleep(0.01)
    ended = await waiting
    assert ended.progress.expired == 3
    for result in [one async for one in client.batch.results(batch.batch_id)]:
        assert result.state is ItemState.EXPIRED
        assert result.error is not None
        assert result.error.reason == "DEADLINE_EXCEEDED"


async def test_what_is_finished_late_says_so(service: BatchService, client: Client) -> None:
    batch = await client.batch.submit(items(3), deadline_s=0.001)
    await eventually(lambda: _passed(service, batch))
    await service.complete(batch.batch_id)
    ended = await client.batch.get(batch.batch_id)
    assert (ended.progress.succeeded, ended.progress.late) == (3, 3)
    assert all([result.late async for result in client.batch.results(batch.batch_id)])


async def _passed(service: BatchService, batch: Batch) -> bool:
    return await service.queue.now() > batch.deadline.timestamp()


async def test_a_batch_is_forgotten_after_its_time(tmp_path: Path) -> None:
    short = Limits(retention_s=0.05)
    async with batch_service(tmp_path, limits=short) as service, Client(service.address) as client:
        batch = await client.batch.submit(items(2), deadline_s=60)
        await service.complete(batch.batch_id)
        await eventually(lambda: _forgotten(service, client, batch.batch_id))
        with pytest.raises(BatchNotFound):
            await anext(client.batch.results(batch.batch_id))


async def _forgotten(service: BatchService, client: Client, batch_id: str) -> bool:
    await service.queue.sweep()
    try:
        await client.batch.get(batch_id)
    except BatchNotFound:
        return True
    return False


async def test_batches_are_listed_newest_first(client: Client) -> None:
    ids = [(await client.batch.submit(items(1), deadline_s=60)).batch_id for _ in range(5)]
    assert [batch.batch_id async for batch in client.batch.list()] == ids[::-1]
    assert [batch.batch_id async for batch in client.batch.list(limit=2)] == ids[:-3:-1]
    assert [b.batch_id async for b in client.batch.list(open_only=True)] == ids[::-1]


async def test_what_is_wrong_with_items_is_told_by_index_and_nothing_is_kept(client: Client) -> None:
    wrong: list[Any] = items(600)
    wrong[3] = {"model": "toy", "prompt": "x", "max_tokens": 0}
    wrong[4] = {"model": "nobody's", "prompt": "x"}
    wrong[5] = {"model": "toy", "prompt": "x", "adapter": "none"}
    wrong[6] = {"model": "toy", "prompt": "x", "max_token": 3}
    wrong[7] = MalformedItem("line 8: no JSON")
    wrong[590] = {"model": "toy"}
    with pytest.raises(InvalidRequest) as caught:
        await client.batch.submit(wrong, deadline_s=60, batch_id="mine")
    fields = {violation.field: violation.description for violation in caught.value.violations}
    assert fields["items[3].request.sampling.max_tokens"] == "must be >= 1"
    assert fields["items[4].request.model"] == 'unknown model "nobody\'s"'
    assert "items[5].request.adapter" in fields
    assert "max_token" in fields["items[6].malformed"]
    assert fields["items[7].malformed"] == "line 8: no JSON"
    assert "items[590].malformed" in fields
    assert len(fields) == 6
    with pytest.raises(BatchNotFound):
        await client.batch.get("mine")


async def test_of_many_wrong_items_as_many_are_named_as_an_answer_holds(client: Client) -> None:
    wrong = [{"model": "x" * 200, "prompt": "y"} for _ in range(2000)]
    with pytest.raises(InvalidRequest) as caught:
        await client.batch.submit(wrong, deadline_s=60)
    assert 10 <= len(caught.value.violations) <= 100


async def test_wrong_items_fail_by_themselves_where_that_is_asked_for(
    service: BatchService, client: Client
) -> None:
    mixed: list[Any] = [*items(2), {"model": "nobody's", "prompt": "x", "custom_id": "bad"}]
    batch = await client.batch.submit(mixed, deadline_s=60, on_invalid="fail")
    await service.complete(batch.batch_id)
    ended = await client.batch.wait(batch.batch_id)
    assert (ended.progress.succeeded, ended.progress.failed) == (2, 1)
    (bad,) = [r async for r in client.batch.results(batch.batch_id, custom_id="bad")]
    assert bad.state is ItemState.FAILED
    assert bad.error is not None
    assert bad.error.reason == "MODEL_NOT_FOUND"
    assert "nobody's" in bad.error.message


@pytest.mark.parametrize("policy", ["refuse", "fail"])
async def test_a_custom_id_that_occurs_twice_refuses_the_batch(client: Client, policy: Any) -> None:
    twice = [{**one, "custom_id": "same"} for one in items(2)]
    with pytest.raises(InvalidRequest) as caught:
        await client.batch.submit(twice, deadline_s=60, batch_id="twice", on_invalid=policy)
    assert [violation.field for violation in caught.value.violations] == ["items[1].custom_id"]
    with pytest.raises(BatchNotFound):
        await client.batch.get("twice")


async def test_the_same_submission_again_is_the_same_batch(service: BatchService, client: Client) -> None:
    first = await client.batch.submit(items(50), deadline_s=60, batch_id="again")
    await service.complete("again")
    second = await client.batch.submit(items(50), deadline_s=99, batch_id="again")
    assert second.state is BatchState.ENDED
    assert second.created == first.created
    assert second.progress.succeeded == 50
    for others in (items(51), items(49), items(50, max_tokens=5), items(50, model="nobody's")):
        with pytest.raises(BatchExists):
            await client.batch.submit(others, deadline_s=60, batch_id="again")
    with pytest.raises(BatchExists):
        await client.batch.submit(items(50), deadline_s=60, batch_id="again", priority=1)
    assert (await client.batch.get("again")).progress.succeeded == 50


async def test_a_batch_of_nothing_ends_at_once(client: Client) -> None:
    batch = await client.batch.submit([], deadline_s=60)
    assert (await client.batch.wait(batch.batch_id)).state is BatchState.ENDED


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"deadline_s": 0}, "header.deadline_s"),
        ({"deadline_s": float("nan")}, "header.deadline_s"),
        ({"deadline_s": "soon"}, "deadline_s"),
        ({"batch_id": "a b"}, "header.batch_id"),
        ({"priority": 2000}, "header.priority"),
        ({"metadata": {"k": "v" * 513}}, "header.metadata"),
        ({"metadata": {"": "v"}}, "header.metadata"),
        ({"on_late": "never"}, "on_late"),
        ({"on_invalid": "never"}, "on_invalid"),
        ({"count": 2_000_000}, "header.items"),
    ],
)
async def test_a_wrong_header_is_named(client: Client, options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.batch.submit(items(1), **{"deadline_s": 60, **options})
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("wrong", ["abc", b"abc", {"model": "toy", "prompt": "x"}, 5, None], ids=repr)
async def test_what_holds_no_items_is_refused_unsent(client: Client, wrong: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await client.batch.submit(wrong, deadline_s=60, batch_id="none")
    assert [violation.field for violation in caught.value.violations] == ["items"]
    with pytest.raises(BatchNotFound):
        await client.batch.get("none")


async def test_wrong_arguments_are_named(client: Client) -> None:
    wrong: Any = -1
    calls = {
        "items": lambda: client.batch.submit(iter(items(1)), deadline_s=60, count=wrong),
        "after": lambda: anext(client.batch.results("b", after=wrong)),
        "limit": lambda: anext(client.batch.list(limit=wrong)),
        "batch_id": lambda: client.batch.get(wrong),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidRequest) as caught:
            await call()
        assert [violation.field for violation in caught.value.violations] == [field]


async def test_another_number_of_items_than_announced_is_refused(client: Client) -> None:
    for count in (2, 4):
        with pytest.raises(InvalidRequest):
            await client.batch.submit(items(3), deadline_s=60, count=count, batch_id="counted")
        with pytest.raises(BatchNotFound):
            await client.batch.get("counted")


async def test_the_blocking_twin_does_the_same(service: BatchService) -> None:
    def use() -> list[str]:
        with SyncClient(service.address, batch_patience_s=10) as client:
            batch = client.batch.submit(iter(items(3)), deadline_s=60, batch_id="sync")
            assert [each.batch_id for each in client.batch.list()] == ["sync"]
            assert client.batch.cancel(batch.batch_id).cancelled
            texts = [result.state for result in client.batch.results("sync", follow=True)]
            assert client.batch.wait("sync").state is BatchState.ENDED
            assert client.batch.usage()[0].open_batches == 0
            client.batch.delete("sync")
            return texts

    using = asyncio.create_task(asyncio.to_thread(use))
    while not using.done():
        await service.queue.sweep()
        await asyncio.sleep(0.01)
    assert using.result() == ["cancelled"] * 3


async def test_a_router_without_a_queue_says_so(tmp_path: Path) -> None:
    async with (
        batch_service(tmp_path, closed=True) as service,
        Client(service.address, batch_patience_s=10) as client,
    ):
        with pytest.raises(NoBatchQueue):
            await client.batch.get("any")
        with pytest.raises(NoBatchQueue):
            await client.batch.submit(items(1), deadline_s=60)
