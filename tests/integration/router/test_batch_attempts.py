"""Items whose workers refuse, break or are not there: what a router does, on workers that tests script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from chiron.batch.opening import open_queue
from chiron.batch.records import Limits
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.batch.settings import BatchSettings
from tests.support.batch_work import ended, hand_in, item, results
from tests.support.fake_router_controller import routed_instance
from tests.support.fake_worker import FakeCall, FakeWorker
from tests.support.wait import eventually


@pytest.fixture
def start(start_router, tmp_path: Path):
    """Starts a router with a queue of its own on these workers."""

    async def start(*workers: FakeWorker, **settings: object):
        chosen = {"retry_first_s": 0.02, "retry_longest_s": 0.05, "attempts": 3, **settings}
        batch = BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}", **chosen)
        router = await start_router(*workers, retry_pause_s=0.02, eject_s=0.02, batch=batch)
        return router.router._batch

    return start


def whole(call: FakeCall, *tokens: int, **fields: object) -> None:
    """Answers to the end."""
    fields = {"finish_reason": pb.FINISH_REASON_LENGTH, **fields}
    last = pb.OutputDelta(
        token_ids=tokens,
        text="x" * len(tokens),
        usage=pb.Usage(prompt_tokens=1, completion_tokens=len(tokens)),
        timing=pb.Timing(),
        origin=pb.StreamOrigin(spec_version=1),
        **fields,
    )
    call.send(pb.GenerateResponse(deltas=[last]))
    call.finish()


def answering(worker: FakeWorker, act: Callable[[FakeCall], None]) -> asyncio.Task[None]:
    """Acts on every call; each frees its slot at once."""

    async def answer() -> None:
        while True:
            call = await worker.calls.get()
            act(call)
            await call.ended.wait()
            worker.publish(started=[call.request.request_id], finished=[call.request.request_id])

    return asyncio.create_task(answer())


async def test_what_workers_do_not_survive_fails_in_the_end_and_says_why(start, start_worker) -> None:
    worker = await start_worker("a")
    part = await start(worker)

    def act(call: FakeCall) -> None:
        if "part 0" in call.request.prompt:
            call.fail(ChironError(Reason.ENGINE_DEAD, "it died of it"))
        else:
            whole(call, 1, 2)

    task = answering(worker, act)
    key = await hand_in(part.queue, [item(0), item(1)])
    batch = await ended(part.queue, key)
    task.cancel()
    assert (batch.counts.succeeded, batch.counts.failed) == (1, 1)
    found = (await results(part.queue, key))[0]
    assert (found.error.reason, found.error.message, found.attempts) == ("ENGINE_DEAD", "it died of it", 3)


async def test_what_cannot_go_on_begins_anew(start, start_worker) -> None:
    worker = await start_worker("a")
    part = await start(worker)
    asked: list[bool] = []

    def act(call: FakeCall) -> None:
        asked.append(call.request.HasField("resume"))
        if len(asked) == 1:
            call.text("a", 1)
            call.fail(ChironError(Reason.STREAM_INTERRUPTED, "lost"))
        elif asked[-1]:
            call.fail(ChironError(Reason.CANNOT_RESUME, "another engine"))
        else:
            whole(call, 5, 6)

    task = answering(worker, act)
    key = await hand_in(part.queue, [item(0)])
    await ended(part.queue, key)
    task.cancel()
    [found] = (await results(part.queue, key)).values()
    assert list(found.output.choices[0].token_ids) == [5, 6], "nothing of the first try is in it"
    assert asked == [False, True, False]
    assert found.attempts == 1


async def test_what_the_engine_gives_up_is_tried_again(start, start_worker) -> None:
    worker = await start_worker("a")
    part = await start(worker)
    tries = 0

    def act(call: FakeCall) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            whole(call, 1, finish_reason=pb.FINISH_REASON_ABORT)
        else:
            whole(call, 5, 6)

    task = answering(worker, act)
    key = await hand_in(part.queue, [item(0)])
    await ended(part.queue, key)
    task.cancel()
    [found] = (await results(part.queue, key)).values()
    assert (list(found.output.choices[0].token_ids), found.attempts) == ([5, 6], 2)


async def test_refusals_of_full_workers_cost_no_attempt(start, start_worker) -> None:
    worker = await start_worker("a")
    part = await start(worker)
    worker.refuse_with = ChironError(Reason.RETRY_ELSEWHERE, "this worker drains")
    key = await hand_in(part.queue, [item(0)])
    await eventually(lambda: part.runner.work.counts.put_back > 1, what="it comes back again and again")
    worker.refuse_with = None
    task = answering(worker, lambda call: whole(call, 1))
    await ended(part.queue, key)
    task.cancel()
    [found] = (await results(part.queue, key)).values()
    assert found.attempts == 1


async def test_an_item_is_a_batch_request_of_its_tenant_under_a_ticket(start, start_worker) -> None:
    worker = await start_worker("a")
    part = await start(worker)
    key = await hand_in(part.queue, [item(0)], priority=7)
    call = await asyncio.wait_for(worker.calls.get(), 10)
    request = call.request
    assert request.request_class == types_pb2.REQUEST_CLASS_BATCH
    assert request.ticket
    assert request.request_id.startswith("batch-")
    assert not request.HasField("resume")
    whole(call, 1)
    await ended(part.queue, key)


async def test_items_of_a_model_that_is_not_applied_wait_until_it_is(start, start_worker, controller) -> None:
    worker, later = await start_worker("a"), await start_worker("b")
    part = await start(worker)
    tasks = [answering(each, lambda call: whole(call, 1)) for each in (worker, later)]
    key = await hand_in(part.queue, [item(0), item(1, model="later"), item(2)])
    await eventually(lambda: part.runner.work.counts.succeeded == 2)
    assert (await part.queue.get(key)).counts.queued == 1
    controller.send(
        models=[control_pb2.RoutedModel(name="later")], instances=[routed_instance("later", later)]
    )
    await ended(part.queue, key)
    for task in tasks:
        task.cancel()
    found = await results(part.queue, key)
    assert [one.attempts for _, one in sorted(found.items())] == [1, 1, 1]


async def test_without_credits_nothing_is_claimed(start, start_worker) -> None:
    worker = await start_worker("a")
    worker.load.batch_credits = 0
    part = await start(worker)
    key = await hand_in(part.queue, [item(index) for index in range(10)])
    await eventually(lambda: part.runner.backlog.units, what="it has read what waits")
    worker.publish()
    await asyncio.sleep(0.2)
    assert (await part.queue.get(key)).counts.queued == 10
    worker.load.batch_credits = 2
    worker.publish()
    for _ in range(2):
        await asyncio.wait_for(worker.calls.get(), 10)
    counts = (await part.queue.get(key)).counts
    assert counts.running <= 3, "what credits are for, and at most one that waits here"


async def test_two_routers_on_one_queue_do_each_item_once(
    start_router, start_worker, tmp_path: Path, monkeypatch, stack
) -> None:
    shared = await open_queue(f"sqlite:{tmp_path / 'queue.db'}", Limits())

    class Shared:
        """Closed when the last of the two is."""

        def __getattr__(self, name: str):
            return getattr(shared, name)

        async def close(self) -> None:
            pass

    async def opened(url: str, limits: Limits) -> Shared:
        return Shared()

    stack.push_async_callback(shared.close)
    monkeypatch.setattr("services.router.batch.part.open_queue", opened)
    workers = [await start_worker(name) for name in ("a", "b")]
    settings = BatchSettings(store="sqlite:shared", checkpoint_s=0.1)
    parts = [
        (await start_router(*workers, router_id=name, batch=settings)).router._batch for name in ("r1", "r2")
    ]
    seen: list[str] = []

    def act(call: FakeCall) -> None:
        seen.append(call.request.prompt)
        whole(call, 1)

    key = await hand_in(shared, [item(index) for index in range(60)])
    await eventually(lambda: all(len(part.runner.work) for part in parts), what="both work on it")
    tasks = [answering(worker, act) for worker in workers]
    await ended(shared, key)
    for task in tasks:
        task.cancel()
    assert len(await results(shared, key)) == 60
    assert len(seen) == len(set(seen)) == 60
    assert sum(part.runner.work.counts.succeeded for part in parts) == 60
