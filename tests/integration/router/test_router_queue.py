"""Requests wait in the router while all is full, in order, within bounds, and leave when they are told to."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.fake_router_controller import routed_instance
from tests.support.fake_worker import FakeWorker
from tests.support.wait import eventually

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH


def request(request_id: str, **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"request_id": request_id, "model": "m", "prompt": "hello", **fields})


async def whole(call) -> list[pb.GenerateResponse]:
    return [response async for response in call]


async def test_a_request_waits_while_all_is_full_and_goes_when_a_slot_frees(
    start_worker, start_router
) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0)
    call = router.stub.Generate(request("r"))
    await router.queued(1)
    assert worker.calls.empty()
    worker.load.running.interactive = 0
    worker.publish(finished=["earlier"])
    answered = await worker.calls.get()
    answered.finish()
    assert await whole(call) == []


async def test_waiting_requests_go_by_class_then_priority_then_arrival(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0)
    calls = []
    arrivals = [
        ("late", BATCH, -9),
        ("second", INTERACTIVE, 0),
        ("third", INTERACTIVE, 0),
        ("first", INTERACTIVE, -1),
    ]
    for count, (name, kind, priority) in enumerate(arrivals):
        calls.append(router.stub.Generate(request(name, request_class=kind, priority=priority)))
        await eventually(lambda count=count: sum(router.waiting() or ()) == count + 1)
    order = []
    worker.load.running.interactive = 0
    for _ in calls:
        worker.publish()
        answered = await worker.calls.get()
        order.append(answered.request.request_id)
        answered.finish()
    assert order == ["first", "second", "third", "late"]
    for call in calls:
        await whole(call)


async def test_a_full_queue_refuses_and_says_when_to_come_back(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, queue_limit=1)
    waiting = router.stub.Generate(request("waits"))
    await router.queued(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(router.stub.Generate(request("refused")))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "QUEUE_FULL"
    assert retry_delay_s(caught.value) > 0
    waiting.cancel()


async def test_a_cancelled_request_leaves_the_queue(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0)
    call = router.stub.Generate(request("r"))
    await router.queued(1)
    call.cancel()
    await router.queued(0)
    worker.load.running.interactive = 0
    worker.publish()
    later = router.stub.Generate(request("later"))
    answered = await worker.calls.get()
    assert answered.request.request_id == "later"
    answered.finish()
    await whole(later)


async def test_a_deadline_ends_the_wait(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(router.stub.Generate(request("r"), timeout=0.1))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await router.queued(0)


@pytest.mark.parametrize("elapsed_ms", [0, 3_600_000])
async def test_the_deadline_of_its_slo_ends_the_wait_counted_from_the_first_door(
    start_worker, start_router, elapsed_ms: float
) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0)
    slo = types_pb2.Slo(deadline_s=elapsed_ms / 1000 + 0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(router.stub.Generate(request("r", slo=slo, elapsed_ms=elapsed_ms)))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reason_of(caught.value) == "DEADLINE_EXCEEDED"
    await router.queued(0)


async def test_a_request_without_a_deadline_has_its_models_for_the_class(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    controller.add("m", [worker], slo_defaults={"batch": {"deadline_s": 0.1}})
    router = await start_router(worker, worker_queue=0)
    interactive = router.stub.Generate(request("interactive"))
    await router.queued(1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(router.stub.Generate(request("batch", request_class=BATCH)))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await router.queued(1)
    interactive.cancel()


async def test_the_longest_wait_is_bounded(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, max_queue_s=0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await whole(router.stub.Generate(request("r")))
    assert reason_of(caught.value) == "QUEUE_FULL"
    assert "0.05 s" in (caught.value.details() or "")


async def test_a_request_waits_for_an_instance_that_loads(start_worker, start_router) -> None:
    worker = await start_worker("a")
    worker.load.state = types_pb2.INSTANCE_STATE_LOADING
    router = await start_router()
    router.router._placer.snapshot(_table_of(worker))
    call = router.stub.Generate(request("r"))
    await router.queued(1)
    worker.load.state = types_pb2.INSTANCE_STATE_READY
    await eventually(lambda: worker.subscriptions)
    worker.publish()
    (await worker.calls.get()).finish()
    await whole(call)


async def test_a_worker_whose_load_stream_is_down_gets_nothing(start_worker, start_router) -> None:
    down, up = await start_worker("a"), await start_worker("b", batch_size=1)
    up.load.running.interactive = 1
    router = await start_router(down, up)
    address = down.address
    await down.stop()
    await eventually(lambda: not router.core._instances["a"].usable)
    call = router.stub.Generate(request("r"))
    answered = await up.calls.get()
    assert answered.request.attempt == 0
    answered.finish()
    await whole(call)
    again = await start_worker("a", incarnation=2)
    await again.stop()
    await again.start(address)
    await router.sees(again)


async def test_batch_requests_take_only_spare_slots_of_a_mixed_instance(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=2)
    batch = router.stub.Generate(request("batch", request_class=BATCH))
    await router.queued(0, 1)
    interactive = router.stub.Generate(request("interactive"))
    answered = await worker.calls.get()
    assert answered.request.request_id == "interactive"
    answered.finish()
    batch.cancel()
    await whole(interactive)


def retry_delay_s(error: grpc.aio.AioRpcError) -> float:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    [found] = [detail for detail in status.details if detail.Is(retry.DESCRIPTOR)]
    found.Unpack(retry)
    return retry.retry_delay.ToTimedelta().total_seconds()


def _table_of(worker: FakeWorker) -> control_pb2.RoutingTable:
    return control_pb2.RoutingTable(
        epoch=1, term=1, models=[control_pb2.RoutedModel(name="m")], instances=[routed_instance("m", worker)]
    )


async def test_many_requests_are_spread_over_the_instances(start_worker, start_router) -> None:
    workers = [await start_worker(name, batch_size=4) for name in "ab"]
    router = await start_router(*workers)
    calls = [router.stub.Generate(request(f"r{n}")) for n in range(8)]
    answered = [await worker.calls.get() for worker in workers for _ in range(4)]
    for call in answered:
        call.finish()
    for call in calls:
        await whole(call)


async def test_a_burst_far_over_the_bound_is_refused_with_a_reason_call_by_call(
    start_worker, start_router
) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, worker_queue=0, queue_limit=10)
    calls = [router.stub.Generate(request(f"r{index}")) for index in range(3000)]
    await router.queued(10)

    async def refusal(call) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await whole(call)
        return reason_of(caught.value) or caught.value.code().name

    tasks = {asyncio.create_task(refusal(call)) for call in calls}
    refused: list[str] = []
    while len(tasks) > 10:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        refused += [task.result() for task in done]
    assert set(refused) == {"QUEUE_FULL"}
    for call in calls:
        call.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
