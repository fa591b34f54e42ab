"""What the router tells the next instance of a proxied stream, and what the caller gets to see."""

from __future__ import annotations

import grpc
import pytest

from chiron.rpc.errors import ChironError, Reason, reason_of
from chiron.v1 import inference_pb2 as pb
from services.router.delivered import Delivered
from tests.support.wait import eventually

ORIGIN = pb.StreamOrigin(cached_prompt_tokens=2, ttft_ms=12.0)
LOST = ChironError(Reason.STREAM_INTERRUPTED, "its time is up")


def request(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**{"model": "m", "prompt": "hello", "request_id": "r", **fields})


def chunk(first: int, *tokens: int, text: str = "", **fields: object) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        deltas=[pb.OutputDelta(first_token_index=first, token_ids=tokens, text=text, **fields)]
    )


@pytest.fixture
async def pair(start_worker, start_router):
    workers = [await start_worker("a"), await start_worker("b", batch_size=1)]
    workers[1].load.running.interactive = 1
    return await start_router(*workers, retry_pause_s=0.05), *workers


async def test_the_next_instance_is_told_what_was_delivered(pair) -> None:
    router, first, second = pair
    call = router.stub.Generate(request(attempt=3, elapsed_ms=50.0))
    begun = await first.calls.get()
    begun.send(chunk(0, 7, text="é", origin=ORIGIN))
    begun.send(chunk(1, 8, 9, text=" 漢字"))
    got = [await call.read(), await call.read()]
    begun.fail(LOST)
    answered = await second.calls.get()
    answered.finish()
    assert await call.read() is grpc.aio.EOF
    resumed = answered.request
    assert list(resumed.resume.delivered_token_ids) == [7, 8, 9]
    assert resumed.resume.delivered_text_length == 4
    assert resumed.resume.origin == ORIGIN
    assert (resumed.request_id, resumed.attempt) == ("r", 4)
    assert resumed.elapsed_ms > begun.request.elapsed_ms >= 50.0
    assert not begun.request.HasField("resume")
    assert [list(one.deltas[0].token_ids) for one in got] == [[7], [8, 9]]


async def test_what_the_caller_itself_resumes_is_added_to(pair) -> None:
    router, first, second = pair
    state = pb.ResumeState(delivered_token_ids=[5, 6], delivered_text_length=3, origin=ORIGIN)
    call = router.stub.Generate(request(attempt=1, resume=state))
    begun = await first.calls.get()
    assert begun.request.resume == state
    begun.send(chunk(2, 7, text="!"))
    await call.read()
    begun.fail(LOST)
    resumed = await second.calls.get()
    assert list(resumed.request.resume.delivered_token_ids) == [5, 6, 7]
    assert resumed.request.resume.delivered_text_length == 4
    assert resumed.request.resume.origin == ORIGIN
    resumed.send(chunk(3, 8))
    resumed.finish()
    assert list((await call.read()).deltas[0].token_ids) == [8]
    assert await call.read() is grpc.aio.EOF


async def test_a_refusal_of_the_resumed_stream_is_tried_elsewhere_and_then_told(pair) -> None:
    router, first, second = pair
    call = router.stub.Generate(request())
    begun = await first.calls.get()
    begun.send(chunk(0, 7))
    await call.read()
    second.refuse_with = ChironError(Reason.RETRY_ELSEWHERE, "draining")
    begun.fail(LOST)
    # Only the first instance is left; it may be tried again after its pause.
    again = await first.calls.get()
    assert list(again.request.resume.delivered_token_ids) == [7]
    first.refuse_with = second.refuse_with
    again.fail(LOST)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert reason_of(caught.value) == "STREAM_INTERRUPTED"


async def test_an_instance_that_cannot_resume_has_the_last_word(pair) -> None:
    router, first, second = pair
    call = router.stub.Generate(request())
    begun = await first.calls.get()
    begun.send(chunk(0, 7))
    await call.read()
    begun.fail(LOST)
    (await second.calls.get()).fail(ChironError(Reason.CANNOT_RESUME, "it has a seed"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.ABORTED, "CANNOT_RESUME")
    assert caught.value.details() == "it has a seed"


async def test_nothing_is_resumed_after_the_last_message(pair) -> None:
    router, first, second = pair
    call = router.stub.Generate(request())
    begun = await first.calls.get()
    begun.send(chunk(0, 7, finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(completion_tokens=1)))
    begun.fail(LOST)
    assert (await call.read()).deltas[0].usage.completion_tokens == 1
    assert await call.read() is grpc.aio.EOF
    assert second.calls.empty()


async def test_a_caller_that_leaves_while_its_stream_waits_to_go_on_is_forgotten(
    start_worker, start_router
) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(request())
    begun = await worker.calls.get()
    begun.send(chunk(0, 7))
    await call.read()
    begun.fail(LOST)
    await router.queued(1)
    call.cancel()
    await router.queued(0)
    await eventually(router.router._serving.under_way.idle.is_set)


def test_a_long_stream_is_kept_as_token_ids_alone() -> None:
    delivered = Delivered(request())
    message = chunk(0, *range(50), text="x" * 50).SerializeToString()
    for _ in range(2000):
        delivered.add(message)
    assert len(delivered._unread) <= 16 * 1024 + len(message)
    state = delivered.state(0)
    assert (len(state.delivered_token_ids), state.delivered_text_length) == (100_000, 100_000)


def test_what_cannot_be_read_cannot_be_resumed() -> None:
    delivered = Delivered(request())
    delivered.add(b"\xff\xff")
    assert not delivered.complete
    assert delivered.obstacle
