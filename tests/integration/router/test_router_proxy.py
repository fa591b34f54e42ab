"""The router proxies streams: bytes unchanged, retried before the first message, never after it."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from chiron.auth.tickets import open_unsigned
from chiron.rpc.errors import FULL, ChironError, Reason, reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.wait import eventually


def request(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"model": "m", "prompt": "hello", **fields})


async def drained(call) -> list[pb.GenerateResponse]:
    return [response async for response in call]


async def test_a_proxied_request_carries_the_models_slo_for_what_it_leaves_open(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    controller.add("m", [worker], slo_defaults={"interactive": {"ttft_ms": 500, "itl_ms": 50}})
    router = await start_router(worker)
    call = router.stub.Generate(request(slo=types_pb2.Slo(itl_ms=20)))
    answered = await worker.calls.get()
    answered.finish()
    await drained(call)
    assert open_unsigned(answered.request.ticket).slo == types_pb2.Slo(ttft_ms=500, itl_ms=20)


async def test_passes_the_workers_bytes_on_unchanged(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    # Field 15 is unknown to every message here: only a router that decodes and encodes could lose it.
    chunks = [b"\x0a\x03\x22\x01x\x7a\x02hi", b"\x0a\x05\x22\x03abc", b""]
    generate = router.channel.unary_stream(
        "/chiron.v1.InferenceService/Generate", pb.GenerateRequest.SerializeToString, lambda data: data
    )
    call = generate(request())
    answered = await worker.calls.get()
    for chunk in chunks:
        answered.send(chunk)
    answered.finish()
    assert [data async for data in call] == chunks


async def test_passes_the_request_on_with_id_attempt_and_time_spent(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    sent = request(
        sampling=pb.SamplingParams(max_tokens=7, stop=["x"]),
        priority=-3,
        request_class=types_pb2.REQUEST_CLASS_BATCH,
        attempt=2,
        elapsed_ms=40.0,
        ticket=b"for another instance",
    )
    call = router.stub.Generate(sent)
    answered = await worker.calls.get()
    answered.finish()
    await drained(call)
    got = answered.request
    assert got.request_id
    assert got.elapsed_ms >= 40.0
    assert got.attempt == 2
    ticket = open_unsigned(got.ticket)
    assert (ticket.instance_id, ticket.request_id, ticket.attempt) == ("a", got.request_id, 2)
    for field in ("request_id", "elapsed_ms", "ticket"):
        got.ClearField(field)
        sent.ClearField(field)
    assert got == sent


async def test_retries_on_another_instance_before_the_first_message(start_worker, start_router) -> None:
    refusing = await start_worker("a")
    refusing.refuse_with = ChironError(Reason.RETRY_ELSEWHERE, "draining")
    serving = await start_worker("b", batch_size=1)
    serving.load.running.interactive = 1
    router = await start_router(refusing, serving)
    call = router.stub.Generate(request(request_id="r"))
    answered = await serving.calls.get()
    assert (answered.request.request_id, answered.request.attempt) == ("r", 1)
    answered.text("hi")
    answered.finish()
    assert [r.deltas[0].text for r in await drained(call)] == ["hi"]


async def test_retries_when_the_worker_cannot_be_reached_and_ejects_it(start_worker, start_router) -> None:
    lost, serving = await start_worker("a"), await start_worker("b", batch_size=1)
    serving.load.running.interactive = 1
    router = await start_router(lost, serving)
    subscriptions = lost.subscriptions
    call = router.stub.Generate(request())
    answered = await lost.calls.get()
    answered.fail(ChironError(Reason.ENGINE_DEAD, "engine died"))
    await (retried := asyncio.ensure_future(serving.calls.get()))
    retried.result().finish()
    await drained(call)
    # Only a new subscription makes it usable again.
    await eventually(lambda: lost.subscriptions > subscriptions)
    await router.sees(lost)


async def test_gives_up_after_max_attempts(start_worker, start_router) -> None:
    workers = [await start_worker(name) for name in "abc"]
    for worker in workers:
        worker.refuse_with = ChironError(Reason.RETRY_ELSEWHERE, "draining")
    router = await start_router(*workers, max_attempts=2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drained(router.stub.Generate(request()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "RETRY_ELSEWHERE"


async def test_retries_after_failures_are_held_to_a_budget(start_worker, start_router) -> None:
    failing = await start_worker("a")
    failing.refuse_with = ChironError(Reason.ENGINE_DEAD, "the engine died of this request")
    options = {"retry_share": 0.0, "retry_floor_per_s": 0.2, "max_attempts": 4, "eject_failures": 100}
    router = await start_router(failing, **options)
    # Ten seconds of the floor: two retries. The third failure is told as the worker told it.
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drained(router.stub.Generate(request()))
    assert reason_of(caught.value) == "ENGINE_DEAD"
    assert caught.value.details() == "the engine died of this request"
    budget = router.router._retries.budget
    assert (budget.spent, budget.refused) == (2, 1)


async def test_a_full_instance_costs_no_attempt_and_no_retry(start_worker, start_router) -> None:
    worker = await start_worker("a")
    worker.refuse_with = ChironError(Reason.RETRY_ELSEWHERE, "all slots are taken", metadata=FULL)
    router = await start_router(worker, max_attempts=1)
    call = router.stub.Generate(request())
    for _ in range(5):
        await router.queued(1)
        worker.publish()
        await router.queued(0)
    await router.queued(1)
    worker.refuse_with = None
    worker.publish()
    (await worker.calls.get()).finish()
    await drained(call)
    assert router.router._retries.budget.spent == 0


async def test_a_lone_instance_that_refused_is_tried_again_after_a_pause(start_worker, start_router) -> None:
    worker = await start_worker("a")
    worker.refuse_with = ChironError(Reason.RETRY_ELSEWHERE, "its queue is full")
    router = await start_router(worker, retry_pause_s=0.05)
    call = router.stub.Generate(request())
    await router.queued(1)
    worker.refuse_with = None
    answered = await worker.calls.get()
    assert answered.request.attempt == 1
    answered.finish()
    await drained(call)


async def test_a_stream_that_may_not_be_resumed_ends_when_its_worker_is_lost(
    start_worker, start_router
) -> None:
    lost, other = await start_worker("a"), await start_worker("b", batch_size=1)
    other.load.running.interactive = 1
    router = await start_router(lost, other, max_resumes=0)
    call = router.stub.Generate(request())
    answered = await lost.calls.get()
    answered.text("one")
    chunks = call.__aiter__()
    assert (await anext(chunks)).deltas[0].text == "one"
    await lost.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(chunks)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "STREAM_INTERRUPTED"
    assert "a" in (caught.value.details() or "")
    assert other.calls.empty()


async def test_the_workers_own_errors_pass_through_with_their_details(start_worker, start_router) -> None:
    worker = await start_worker("a")
    worker.refuse_with = ChironError.invalid(
        [("prompt", "9 tokens and max_tokens 4 exceed the context of 8")]
    )
    router = await start_router(worker)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drained(router.stub.Generate(request()))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "prompt: 9 tokens and max_tokens 4 exceed the context of 8"
    assert reason_of(caught.value) == "INVALID_ARGUMENT"


@pytest.mark.parametrize("delivered", [False, True])
async def test_a_callers_cancel_reaches_the_worker(start_worker, start_router, delivered: bool) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request())
    reading = asyncio.ensure_future(drained(call))
    answered = await worker.calls.get()
    if delivered:
        answered.text("one")
    call.cancel()
    await answered.ended.wait()
    assert answered.cancelled
    with contextlib.suppress(asyncio.CancelledError):
        await reading


async def test_the_callers_deadline_reaches_the_worker(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request(), timeout=30)
    answered = await worker.calls.get()
    # Deadlines are rounded on their way.
    assert 0 < answered.time_remaining < 31
    answered.finish()
    await drained(call)


async def test_a_worker_that_outlives_its_place_in_the_table_finishes_its_streams(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request())
    answered = await worker.calls.get()
    controller.send(removed_instance_ids=["a"])
    await eventually(lambda: "a" not in router.core.table.instances)
    answered.text("late")
    answered.finish()
    assert [r.deltas[0].text for r in await drained(call)] == ["late"]


async def test_a_reader_that_stalls_is_ended_and_its_slot_freed(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, reader_stall_s=0.2)
    call = router.stub.Generate(request())
    answered = await worker.calls.get()
    chunks = call.__aiter__()
    answered.text("first")
    await anext(chunks)
    big = pb.GenerateResponse(deltas=[pb.OutputDelta(text="x" * 1_000_000)])
    for _ in range(100):
        answered.send(big)
    await answered.ended.wait()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in chunks:
            pass
    assert reason_of(caught.value) == "READER_STALLED"


async def test_shut_down_ends_what_the_drain_timeout_leaves(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request())
    answered = await worker.calls.get()
    answered.text("one")
    chunks = call.__aiter__()
    await anext(chunks)
    stopping = asyncio.ensure_future(router.router.stop())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(chunks)
    assert reason_of(caught.value) == "STREAM_INTERRUPTED"
    await stopping
    await answered.ended.wait()
    assert answered.cancelled


async def test_shut_down_sends_what_has_no_token_yet_elsewhere(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request())
    await worker.calls.get()
    stopping = asyncio.ensure_future(router.router.stop())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drained(call)
    assert reason_of(caught.value) == "RETRY_ELSEWHERE"
    await stopping


async def test_a_cancel_while_the_reader_stalls_frees_the_slot_quietly(
    start_worker, start_router, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request())
    answered = await worker.calls.get()
    big = pb.GenerateResponse(deltas=[pb.OutputDelta(text="x" * 1_000_000)])
    for _ in range(100):
        answered.send(big)
    streams = router.router._streams._streams
    await eventually(lambda: any(stream.writing_since for stream in streams))
    call.cancel()
    await eventually(lambda: not streams)
    await answered.ended.wait()
    assert not [
        record
        for record in caplog.records
        if "InferenceService/Generate" in record.getMessage() and "services/router" in (record.exc_text or "")
    ]


async def test_a_stalled_reader_that_leaves_before_it_was_told_leaves_quietly(
    start_worker, start_router, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker, reader_stall_s=0.1)
    call = router.stub.Generate(request())
    answered = await worker.calls.get()
    big = pb.GenerateResponse(deltas=[pb.OutputDelta(text="x" * 1_000_000)])
    for _ in range(100):
        answered.send(big)
    # Its slot is free; only its error has not reached it.
    await answered.ended.wait()
    call.cancel()
    await eventually(router.router._serving.under_way.idle.is_set)
    assert not [record for record in caplog.records if "services/router" in (record.exc_text or "")]
