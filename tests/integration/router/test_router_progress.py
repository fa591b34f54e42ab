"""Requests that wait for an instance are told so, and the controller hears at once that they do."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from chiron.client import Client, NoInstance, Progress, QueueFull, SyncClient
from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.fake_router_controller import routed_instance
from tests.support.wait import eventually

LOADING = types_pb2.INSTANCE_STATE_LOADING
LAST = pb.OutputDelta(
    token_ids=[7],
    text="hi",
    text_ends=[2],
    finish_reason=pb.FINISH_REASON_LENGTH,
    usage=pb.Usage(prompt_tokens=1, completion_tokens=1),
    timing=pb.Timing(ttft_ms=1),
)


def coming(key: str = "a") -> control_pb2.RoutedModel:
    one = control_pb2.ComingInstance(instance_id=key, state=LOADING, loading_ms=2000, ready_in_ms=28_000)
    return control_pb2.RoutedModel(name="m", on_demand=True, coming=[one])


@pytest.fixture
async def router(controller, start_router):
    """A router whose only model has no instance, and would start one."""
    controller.add("m", on_demand=True, reason="one starts on demand")
    return await start_router(report_interval_s=60.0)


async def start(controller, start_worker, router, **options: object):
    """An instance of the model has loaded."""
    worker = await start_worker("a", **options)
    controller.send(models=[control_pb2.RoutedModel(name="m")], instances=[routed_instance("m", worker)])
    return worker


async def answer(worker) -> None:
    call = await worker.calls.get()
    call.send(pb.GenerateResponse(deltas=[LAST]))
    call.finish()


async def test_the_controller_hears_of_waiting_requests_before_the_next_report(controller, router) -> None:
    first = router.stub.Generate(pb.GenerateRequest(request_id="r", model="m", prompt="x"))
    async with asyncio.timeout(10):
        call = await controller.calls.get()
    assert [(one.model, one.queued.interactive) for one in call.models] == [("m", 1)]
    # Who comes later is told of by the next report.
    second = router.stub.Generate(pb.GenerateRequest(request_id="s", model="m", prompt="x"))
    await router.queued(2)
    assert controller.calls.empty()
    first.cancel()
    second.cancel()


async def test_a_report_starts_the_telling_anew_and_covers_what_arrived(controller, start_router) -> None:
    controller.add("m", on_demand=True)
    router = await start_router(report_interval_s=0.05)
    calls = [router.stub.Generate(pb.GenerateRequest(request_id="r", model="m", prompt="x"))]
    async with asyncio.timeout(10):
        await controller.calls.get()
        arrived = 0
        while not arrived:
            report = await controller.reports.get()
            arrived = sum(one.arrived.interactive for one in report.demand)
        calls.append(router.stub.Generate(pb.GenerateRequest(request_id="s", model="m", prompt="x")))
        call = await controller.calls.get()
    assert arrived == 1
    assert call.models[0].queued.interactive == 2
    for one in calls:
        one.cancel()


async def test_nothing_is_told_at_once_where_instances_serve(controller, start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, report_interval_s=60.0)
    call = router.stub.Generate(pb.GenerateRequest(request_id="r", model="m", prompt="x"))
    await router.queued(1)
    await asyncio.sleep(0)
    assert not router.router._placer.calls.any.is_set()
    assert controller.calls.empty()
    call.cancel()


@pytest.mark.parametrize("lookaside", [True, False])
async def test_the_sdk_tells_what_is_waited_for_in_order_and_then_the_answer(
    controller, start_worker, router, lookaside: bool
) -> None:
    told: list[Progress] = []
    async with Client(router.address, lookaside=lookaside) as client:
        answered = asyncio.create_task(
            client.complete(model="m", prompt="x", max_tokens=1, on_progress=told.append)
        )
        await eventually(lambda: told)
        controller.send(models=[coming()])
        await eventually(lambda: told[-1].instance_id == "a")
        # Each second again, although nothing but the time differs.
        before = len(told)
        await eventually(lambda: len(told) > before)
        worker = await start(controller, start_worker, router)
        await answer(worker)
        completion = await answered
    assert completion.text == "hi"
    assert told[0].text == "model m: one starts on demand; place 1 of 1 in the queue"
    assert (told[0].instance_id, told[0].ready_in_ms) == ("", None)
    waits = [one for one in told if one.instance_id]
    assert len(waits) >= 2
    if not told[-1].instance_id:
        # The worker has come up, and the router was about to reach it.
        assert "no instance can be reached yet" in told.pop().text
    assert [one.instance_id for one in told] == [""] * (len(told) - len(waits)) + ["a"] * len(waits)
    assert waits[0].text.startswith("model m: instance a loads, 2 s of about 30 s")
    assert waits[-1].loading_ms > waits[0].loading_ms >= 2000
    assert waits[-1].ready_in_ms is not None
    assert waits[-1].ready_in_ms < 28_000
    assert [one.waited_ms for one in told] == sorted(one.waited_ms for one in told)


async def test_who_does_not_ask_is_told_nothing(controller, start_worker, router) -> None:
    call = router.stub.Generate(pb.GenerateRequest(request_id="r", model="m", prompt="x"))
    await router.queued(1)
    worker = await start(controller, start_worker, router)
    await answer(worker)
    messages = [message async for message in call]
    assert [len(message.progress) for message in messages] == [0]


async def test_a_stream_that_was_told_begins_anew_elsewhere(controller, start_worker, router) -> None:
    """What was told is no part of the answer: a failure before the first token is retried as ever."""
    call = router.stub.Generate(pb.GenerateRequest(request_id="r", model="m", prompt="x", tell_progress=True))
    message = await call.read()
    assert message.progress[0].position == 1
    first = await start_worker("a")
    controller.send(models=[control_pb2.RoutedModel(name="m")], instances=[routed_instance("m", first)])
    broken = await first.calls.get()
    second = await start_worker("b")
    controller.send(instances=[routed_instance("m", second)])
    await router.sees(second)
    broken.fail(ChironError(Reason.ENGINE_DEAD, "it died"))
    again = await second.calls.get()
    assert not again.request.HasField("resume")
    again.send(pb.GenerateResponse(deltas=[LAST]))
    again.finish()
    assert [delta.text for delta in (await call.read()).deltas] == ["hi"]
    assert await call.read() is grpc.aio.EOF


async def test_the_synchronous_client_tells_it_too(controller, start_worker, router) -> None:
    told: list[Progress] = []

    def ask() -> str:
        with SyncClient(router.address) as client:
            return client.complete(model="m", prompt="x", max_tokens=1, on_progress=told.append).text

    asked = asyncio.create_task(asyncio.to_thread(ask))
    await eventually(lambda: told)
    worker = await start(controller, start_worker, router)
    await answer(worker)
    assert await asked == "hi"
    assert told[0].waiting == 1


async def test_what_the_callback_raises_ends_the_request(router) -> None:
    def refuse(_: Progress) -> None:
        raise RuntimeError("no more of it")

    async with Client(router.address) as client:
        with pytest.raises(RuntimeError, match="no more of it"):
            await client.complete(model="m", prompt="x", on_progress=refuse)
    await router.queued(0)


async def test_a_start_that_fails_ends_every_wait_with_the_reason(controller, router) -> None:
    async with Client(router.address) as client, Client(router.address, lookaside=False) as proxied:
        asked = [
            asyncio.create_task(one.complete(model="m", prompt="x", on_progress=lambda _: None))
            for one in (client, client, proxied)
        ]
        await router.queued(3)
        failed = control_pb2.RoutedModel(
            name="m", on_demand=True, failed=True, reason="m-1 on node-0 failed: no weights"
        )
        controller.send(models=[failed])
        for one in asked:
            with pytest.raises(NoInstance, match="m-1 on node-0 failed: no weights"):
                await one


async def test_who_leaves_while_it_waits_is_gone(router) -> None:
    async with Client(router.address) as client:
        asked = asyncio.create_task(client.complete(model="m", prompt="x", on_progress=lambda _: None))
        await router.queued(1)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        await router.queued(0)
    assert not router.router._placer._waiters


async def test_a_full_queue_refuses_at_zero_too(controller, start_router) -> None:
    controller.add("m", on_demand=True)
    router = await start_router(queue_limit=1)
    async with Client(router.address, max_attempts=1) as client:
        waits = asyncio.create_task(client.complete(model="m", prompt="x"))
        await router.queued(1)
        with pytest.raises(QueueFull):
            await client.complete(model="m", prompt="x", on_progress=lambda _: None)
        waits.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waits


async def test_a_call_without_a_request_is_refused(router) -> None:
    call = router.stub.WatchRoute(pb.WatchRouteRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
