"""What becomes of batches when connections break, routers go away and callers stop; a real port and queue."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from chiron.batch.contract import UNLIMITED, BatchQueue, UnavailableError
from chiron.batch.records import Batch as StoredBatch
from chiron.batch.records import BatchKey, Limits, NewItem, TenantLimits
from chiron.client import (
    BatchBrokenOff,
    BatchNotFound,
    BatchQueueFull,
    BatchState,
    Client,
    InvalidRequest,
    SyncClient,
    Unavailable,
)
from chiron.client.batch import submission
from chiron.rpc.errors import reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import batch_pb2_grpc, inference_pb2
from tests.support.batch_service import BatchService, batch_service, items
from tests.support.wait import eventually


def wire_items(numbers: Sequence[int], prompt: str = "question") -> list[pb.BatchItem]:
    return [
        pb.BatchItem(index=n, request=inference_pb2.GenerateRequest(model="toy", prompt=f"{prompt} {n}"))
        for n in numbers
    ]


def header(batch_id: str, **fields: Any) -> pb.SubmitBatchRequest:
    return pb.SubmitBatchRequest(header=pb.BatchHeader(batch_id=batch_id, deadline_s=60, **fields))


class Altered:
    """A queue of which a test changes single calls."""

    def __init__(self, queue: BatchQueue) -> None:
        self._queue = queue

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[BatchService]:
    async with batch_service(tmp_path) as running:
        yield running


@pytest.fixture
async def stub(service: BatchService) -> AsyncIterator[batch_pb2_grpc.BatchServiceStub]:
    async with open_channel(service.address) as channel:
        yield batch_pb2_grpc.BatchServiceStub(channel)


async def check_whole(client: Client, batch_id: str, count: int) -> None:
    results = [result async for result in client.batch.results(batch_id)]
    assert sorted(result.index for result in results) == list(range(count))
    assert [result.number for result in results] == list(range(1, count + 1))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_router_that_restarts_during_a_submission_is_waited_for(
    service: BatchService, *, asynchronous: bool
) -> None:
    loop = asyncio.get_running_loop()

    async def feed() -> AsyncIterator[dict[str, Any]]:
        for n, one in enumerate(items(6000)):
            if n in (2500, 4000):
                await service.restart()
            yield one

    def read() -> Any:
        for n, one in enumerate(items(6000)):
            if n in (2500, 4000):
                asyncio.run_coroutine_threadsafe(service.restart(), loop).result()
            yield one

    source = feed() if asynchronous else read()
    async with Client(service.address, batch_patience_s=20) as client:
        batch = await client.batch.submit(source, deadline_s=60)
        assert (batch.state, batch.progress.items_received) == (BatchState.ACTIVE, 6000)
        await service.complete(batch.batch_id)
        await check_whole(client, batch.batch_id, 6000)


async def test_what_is_on_disk_is_not_kept_by_the_submitter(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_LOOK_BYTES", 200_000)
    monkeypatch.setattr(submission, "_MOST_BYTES", 400_000)
    kept: list[int] = []
    look = submission.Submission._look

    async def watched(self: submission.Submission, call: Any) -> None:
        await look(self, call)
        kept.append(self._unsure.bytes)

    monkeypatch.setattr(submission.Submission, "_look", watched)

    async def feed() -> AsyncIterator[dict[str, Any]]:
        for n, one in enumerate(items(4000, prompt="x" * 1000)):
            if n in (1500, 3000):
                assert kept
                await service.restart()
            yield one

    async with Client(service.address, batch_patience_s=20) as client:
        batch = await client.batch.submit(feed(), deadline_s=60)
        assert batch.progress.items_received == 4000
    assert max(kept) <= 400_000


async def test_a_batch_that_is_gone_with_what_was_sent_first_is_not_begun_in_its_midst(
    service: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "_LOOK_BYTES", 0)

    async def feed() -> AsyncIterator[dict[str, Any]]:
        for n, one in enumerate(items(2000)):
            if n == 1400:
                await eventually(lambda: _is_kept(service, "mine", 1000))
            if n == 1900:
                await service.queue.discard(("", "mine"))
            yield one

    async with Client(service.address, batch_patience_s=20) as client:
        with pytest.raises(BatchBrokenOff):
            await client.batch.submit(feed(), deadline_s=60, batch_id="mine")
        with pytest.raises(BatchNotFound):
            await client.batch.get("mine")


async def _is_kept(service: BatchService, batch_id: str, count: int) -> bool:
    return (await service.queue.get(("", batch_id))).counts.received >= count


async def test_a_queue_that_takes_no_writes_is_waited_for(tmp_path: Path) -> None:
    refusals = iter(range(3))

    class Full(Altered):
        async def append(
            self, batch: BatchKey, new: Sequence[NewItem], limits: TenantLimits = UNLIMITED
        ) -> int:
            if next(refusals, None) is not None:
                raise UnavailableError("the disk is full")
            return int(await self._queue.append(batch, new, limits))

    async with batch_service(tmp_path, wrap=Full) as service, Client(service.address) as client:
        batch = await client.batch.submit(items(1200), deadline_s=60)
        assert batch.progress.items_received == 1200
        assert client.stats.retries >= 1
    refusals = iter(range(1000))
    async with batch_service(tmp_path, wrap=Full) as service, AsyncExitStack() as stack:
        client = await stack.enter_async_context(Client(service.address, batch_patience_s=0.5))
        with pytest.raises(Unavailable, match="the disk is full") as caught:
            await client.batch.submit(items(10), deadline_s=60)
        assert caught.value.reason == "STORE_UNAVAILABLE"


async def test_a_router_without_a_queue_is_passed_over_where_another_has_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(batch_service(tmp_path))
        other = await stack.enter_async_context(batch_service(tmp_path / "other", closed=True))
        client = await stack.enter_async_context(Client([other.address, service.address]))
        batch = await client.batch.submit(items(3), deadline_s=60)
        assert (await client.batch.get(batch.batch_id)).progress.items_received == 3


async def test_an_acceptance_whose_answer_is_lost_is_found_again(tmp_path: Path) -> None:
    seals = 0

    class Lost(Altered):
        async def seal(self, batch: BatchKey, count: int) -> StoredBatch:
            nonlocal seals
            seals += 1
            done = await self._queue.seal(batch, count)
            if seals == 1:
                asyncio.get_running_loop().call_soon(restarts.set)
                await asyncio.Event().wait()
            return done

    restarts = asyncio.Event()
    async with batch_service(tmp_path, wrap=Lost) as service:

        async def restart() -> None:
            await restarts.wait()
            await service.restart()

        restarting = asyncio.create_task(restart())
        async with Client(service.address, batch_patience_s=20) as client:
            batch = await client.batch.submit(items(700), deadline_s=60)
            assert batch.progress.items_received == 700
            assert [each.batch_id async for each in client.batch.list()] == [batch.batch_id]
        await restarting
        assert seals == 2


async def test_streams_are_taken_up_after_a_restart(service: BatchService) -> None:
    async with Client(service.address, batch_patience_s=20) as client:
        batch = await client.batch.submit(items(400), deadline_s=60)
        numbers: list[int] = []
        ended: list[int] = []

        async def follow() -> None:
            async for result in client.batch.results(batch.batch_id, follow=True):
                numbers.append(result.number)  # noqa: PERF401  # Read while it grows.

        async def watch() -> None:
            async for seen in client.batch.watch(batch.batch_id):
                ended.append(seen.progress.ended)  # noqa: PERF401  # Read while it grows.

        tasks = [asyncio.create_task(follow()), asyncio.create_task(watch())]
        for done in (100, 200, 300, 400):
            await service.finish(await service.claim(batch.batch_id, 100))
            await eventually(lambda done=done: len(numbers) == done and ended and ended[-1] == done)
            if done < 400:
                await service.restart()
        await asyncio.gather(*tasks)
        assert numbers == list(range(1, 401))
        assert ended == sorted(ended)


async def test_nobody_waits_for_ever_for_a_router(service: BatchService) -> None:
    async with Client(service.address, batch_patience_s=0.5, router_wait_s=0) as client:
        batch = await client.batch.submit(items(1), deadline_s=60)
        await service.crash()
        with pytest.raises(Unavailable):
            await client.batch.get(batch.batch_id)
        with pytest.raises(Unavailable) as caught:
            await client.batch.submit(items(1), deadline_s=60, batch_id="mine")
        assert caught.value.metadata["batch_id"] == "mine"


async def test_a_stream_that_breaks_leaves_what_came_and_nothing_runs(
    service: BatchService, stub: batch_pb2_grpc.BatchServiceStub
) -> None:
    call = stub.SubmitBatch()
    await call.write(header("half"))
    await call.write(pb.SubmitBatchRequest(items=wire_items(range(10))))
    await eventually(lambda: _received(stub, "half", 10))
    call.cancel()
    batch = (await stub.GetBatch(pb.GetBatchRequest(batch_id="half"))).batch
    assert (batch.state, batch.progress.items_contiguous) == (pb.BATCH_STATE_RECEIVING, 10)
    assert await service.claim("half") == []
    # Taken up by somebody who sends what is missing alone.
    rest = [header("half"), pb.SubmitBatchRequest(items=wire_items(range(10, 15)), complete=True)]
    answer = await stub.SubmitBatch(iter(rest))
    assert (answer.batch.state, answer.batch.progress.items_received) == (pb.BATCH_STATE_ACTIVE, 15)


async def test_a_batch_that_was_never_handed_in_completely_can_be_forgotten(
    stub: batch_pb2_grpc.BatchServiceStub,
) -> None:
    call = stub.SubmitBatch()
    await call.write(header("half"))
    await eventually(lambda: _received(stub, "half", 0))
    call.cancel()
    await stub.DeleteBatch(pb.DeleteBatchRequest(batch_id="half"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBatch(pb.GetBatchRequest(batch_id="half"))
    assert reason_of(caught.value) == "BATCH_NOT_FOUND"


async def _received(stub: batch_pb2_grpc.BatchServiceStub, batch_id: str, count: int) -> bool:
    try:
        answer = await stub.GetBatch(pb.GetBatchRequest(batch_id=batch_id))
    except grpc.aio.AioRpcError:
        return False
    return answer.batch.progress.items_received >= count


async def test_a_stream_that_ends_without_being_complete_is_not_accepted(
    stub: batch_pb2_grpc.BatchServiceStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SubmitBatch(iter([header("cut"), pb.SubmitBatchRequest(items=wire_items(range(3)))]))
    assert reason_of(caught.value) == "BATCH_BROKEN_OFF"
    batch = (await stub.GetBatch(pb.GetBatchRequest(batch_id="cut"))).batch
    assert (batch.state, batch.progress.items_received) == (pb.BATCH_STATE_RECEIVING, 3)


async def test_a_silent_submitter_is_ended_and_what_came_is_kept(tmp_path: Path) -> None:
    async with batch_service(tmp_path, silence_s=0.2) as service, open_channel(service.address) as channel:
        stub = batch_pb2_grpc.BatchServiceStub(channel)
        call = stub.SubmitBatch()
        await call.write(header("silent"))
        await call.write(pb.SubmitBatchRequest(items=wire_items(range(3))))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert reason_of(caught.value) == "BATCH_BROKEN_OFF"
        assert await _received(stub, "silent", 3)


async def test_two_streams_may_hand_in_the_same_batch_at_once(
    service: BatchService, stub: batch_pb2_grpc.BatchServiceStub
) -> None:
    one, other = stub.SubmitBatch(), stub.SubmitBatch()
    for call, numbers in ((one, range(50)), (other, range(80))):
        await call.write(header("both", items=100))
        await call.write(pb.SubmitBatchRequest(items=wire_items(numbers)))
    await eventually(lambda: _received(stub, "both", 80))
    await other.write(pb.SubmitBatchRequest(items=wire_items(range(80, 100)), complete=True))
    await other.done_writing()
    first = await other
    await one.write(pb.SubmitBatchRequest(items=wire_items(range(50, 100)), complete=True))
    await one.done_writing()
    second = await one
    for answer in (first, second):
        assert (answer.batch.state, answer.batch.progress.items_received) == (pb.BATCH_STATE_ACTIVE, 100)
    await service.complete("both")
    assert (await stub.GetBatch(pb.GetBatchRequest(batch_id="both"))).batch.progress.succeeded == 100


async def test_a_stream_whose_batch_is_discarded_meanwhile_may_be_sent_again(
    stub: batch_pb2_grpc.BatchServiceStub,
) -> None:
    call = stub.SubmitBatch()
    await call.write(header("mine"))
    await call.write(pb.SubmitBatchRequest(items=wire_items(range(3))))
    await eventually(lambda: _received(stub, "mine", 3))
    await stub.DeleteBatch(pb.DeleteBatchRequest(batch_id="mine"))
    await call.write(pb.SubmitBatchRequest(items=wire_items(range(3, 6))))
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value) == "BATCH_BROKEN_OFF"


async def test_a_slow_queue_holds_the_submitter_back(tmp_path: Path) -> None:
    held = asyncio.Event()
    under_way: list[int] = []

    class Slow(Altered):
        async def append(
            self, batch: BatchKey, new: Sequence[NewItem], limits: TenantLimits = UNLIMITED
        ) -> int:
            under_way.append(len(new))
            await held.wait()
            return int(await self._queue.append(batch, new, limits))

    async with batch_service(tmp_path, wrap=Slow) as service, Client(service.address) as client:
        told: list[int] = []
        big = ({"model": "toy", "prompt": "x" * 2000, "max_tokens": 1} for _ in range(20_000))
        submitting = asyncio.create_task(client.batch.submit(big, deadline_s=60, sent=told.append))
        await eventually(lambda: len(under_way) == 4)
        # It goes on as far as gRPC's windows reach, and stands.
        before = -1
        while told[-1] != before:
            before = told[-1]
            await asyncio.sleep(0.3)
        assert told[-1] < 10_000
        assert len(under_way) == 4
        held.set()
        assert (await submitting).progress.items_received == 20_000


async def test_a_full_queue_is_told_and_waited_for(tmp_path: Path) -> None:
    async with batch_service(tmp_path, limits=Limits(queued_items=1000)) as service:
        async with Client(service.address, batch_patience_s=1.0) as client:
            first = await client.batch.submit(items(900), deadline_s=60)
            with pytest.raises(BatchQueueFull) as caught:
                await client.batch.submit(items(600), deadline_s=60, batch_id="late")
            assert caught.value.retry_after_s
            assert (await client.batch.get("late")).state is BatchState.RECEIVING
            await client.batch.delete("late")
        async with Client(service.address, batch_patience_s=30.0) as client:
            waiting = asyncio.create_task(client.batch.submit(items(600), deadline_s=60))
            await service.complete(first.batch_id)
            assert (await waiting).progress.items_received == 600


async def test_an_item_that_is_too_large_is_named(tmp_path: Path) -> None:
    small = Limits(body_bytes=1000)
    async with batch_service(tmp_path, limits=small) as service, Client(service.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.batch.submit([*items(3), *items(1, prompt="x" * 2000)], deadline_s=60)
    assert caught.value.violations[0].field == "items[3].request"


async def test_a_result_larger_than_a_message_comes_whole(service: BatchService) -> None:
    sizes = [10, 3_000_000, 10, 20_000_000, 1_048_576, 0]
    async with Client(service.address) as client:
        batch = await client.batch.submit(items(len(sizes)), deadline_s=60)
        claims = await service.claim(batch.batch_id)
        await service.finish(claims, lambda claim: str(claim.lease.index) * sizes[claim.lease.index])
        read = [r.output.text async for r in client.batch.results(batch.batch_id) if r.output]
    assert read == [str(n) * size for n, size in enumerate(sizes)]


async def test_no_message_of_results_is_too_large_for_any_caller(
    service: BatchService, stub: batch_pb2_grpc.BatchServiceStub
) -> None:
    await stub.SubmitBatch(
        iter([header("big"), pb.SubmitBatchRequest(items=wire_items(range(40)), complete=True)])
    )
    await service.finish(await service.claim("big"), lambda claim: "x" * 150_000 * (claim.lease.index % 20))
    sizes = [
        response.ByteSize() async for response in stub.ReadResults(pb.ReadResultsRequest(batch_id="big"))
    ]
    assert max(sizes) < 4 << 20
    assert len(sizes) > 20


async def _read_out(call: Any) -> None:
    while await call.read():
        pass


async def test_a_reader_that_takes_nothing_is_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with batch_service(tmp_path, stall_s=0.3) as service, open_channel(service.address) as channel:
        stub = batch_pb2_grpc.BatchServiceStub(channel)
        await stub.SubmitBatch(
            iter([header("big"), pb.SubmitBatchRequest(items=wire_items(range(40)), complete=True)])
        )
        await service.finish(await service.claim("big"), lambda claim: "x" * 1_000_000)
        call = stub.ReadResults(pb.ReadResultsRequest(batch_id="big"))
        first = await call.read()
        assert first.results or first.part  # type: ignore[union-attr]
        await eventually(lambda: "reader stalls" in caplog.text)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_out(call)
        assert reason_of(caught.value) == "READER_STALLED"


async def test_a_slow_reader_of_the_sdk_gets_everything_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with batch_service(tmp_path, stall_s=0.3) as service, Client(service.address) as client:
        batch = await client.batch.submit(items(60), deadline_s=60)
        await service.finish(await service.claim(batch.batch_id), lambda claim: "x" * 1_000_000)
        numbers = []
        async for result in client.batch.results(batch.batch_id):
            if result.number == 1:
                await eventually(lambda: "reader stalls" in caplog.text)
            numbers.append(result.number)
        assert numbers == list(range(1, 61))


async def test_a_router_that_shuts_down_sends_its_callers_elsewhere(
    service: BatchService, stub: batch_pb2_grpc.BatchServiceStub
) -> None:
    await stub.SubmitBatch(
        iter([header("one"), pb.SubmitBatchRequest(items=wire_items(range(3)), complete=True)])
    )
    watching = stub.WatchBatch(pb.WatchBatchRequest(batch_id="one"))
    following = stub.ReadResults(pb.ReadResultsRequest(batch_id="one", follow=True))
    submitting = stub.SubmitBatch()
    await submitting.write(header("two"))
    await watching.read()
    await eventually(lambda: len(service.servicer.tasks) == 3)
    await service.servicer.close()
    for call in (watching.read(), following.read(), submitting):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert reason_of(caught.value) == "RETRY_ELSEWHERE"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetBatch(pb.GetBatchRequest(batch_id="one"))
    assert reason_of(caught.value) == "RETRY_ELSEWHERE"


async def test_a_router_without_a_table_takes_no_batch_yet(service: BatchService) -> None:
    service.has_table = False
    async with Client(service.address, batch_patience_s=20) as client:
        submitting = asyncio.create_task(client.batch.submit(items(3), deadline_s=60))
        await eventually(lambda: client.stats.retries)
        service.has_table = True
        assert (await submitting).progress.items_received == 3


async def test_a_batch_that_is_deleted_ends_its_watch(service: BatchService) -> None:
    async with Client(service.address) as client:
        batch = await client.batch.submit(items(3), deadline_s=60)
        reading = client.batch.results(batch.batch_id, follow=True)
        waiting = asyncio.ensure_future(anext(reading))
        await eventually(lambda: service.servicer.tasks)
        await client.batch.cancel(batch.batch_id)
        # Whoever deletes it first makes its results unreadable.
        while (await client.batch.get(batch.batch_id)).state is not BatchState.ENDED:
            await service.queue.sweep()
        await client.batch.delete(batch.batch_id)
        await asyncio.wait([waiting])
        with pytest.raises(BatchNotFound):
            await client.batch.wait(batch.batch_id)
        await reading.aclose()


def test_the_blocking_twin_reads_its_items_beside_the_event_loop(tmp_path: Path) -> None:
    started = asyncio.Event()
    address: list[str] = []
    stop = asyncio.Event()

    async def serve() -> None:
        async with batch_service(tmp_path) as service:
            address.append(service.address)
            started.set()
            await stop.wait()

    async def both() -> int:
        serving = asyncio.create_task(serve())
        await started.wait()

        def use() -> int:
            with SyncClient(address[0]) as client:
                endless = ({"model": "toy", "prompt": str(n)} for n in itertools.count())
                # Another call goes through while a generator waits inside `submit`.
                inside = (one if n else (client.batch.usage(), one)[1] for n, one in enumerate(endless))
                return client.batch.submit(
                    itertools.islice(inside, 300), deadline_s=60
                ).progress.items_received

        try:
            return await asyncio.to_thread(use)
        finally:
            stop.set()
            await serving

    assert asyncio.run(both()) == 300
