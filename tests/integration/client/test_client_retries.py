"""What is tried again, where, and what the caller is told when nothing helps."""

from __future__ import annotations

import asyncio

import pytest

from chiron.client import (
    Client,
    ConnectionLost,
    DeadlineExceeded,
    NoInstance,
    Overloaded,
    ProtocolError,
    RetryElsewhere,
    StreamInterrupted,
)
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason
from chiron.v1 import inference_pb2 as pb
from tests.support.fake_inference import (
    FakeDoor,
    FakeRouter,
    Relay,
    answer,
    break_off,
    closed_port,
    delta,
    refuse,
    send,
    serving,
    stall,
)
from tests.support.wait import eventually


@pytest.fixture
async def first():
    return FakeDoor("w-1")


@pytest.fixture
async def second():
    return FakeDoor("w-2")


@pytest.fixture
async def router(first, second):
    router = FakeRouter(first, second)
    async with serving(first, second, router):
        yield router


@pytest.mark.parametrize("reason", [Reason.RETRY_ELSEWHERE, Reason.ENGINE_DEAD, Reason.STREAM_INTERRUPTED])
async def test_a_refusal_before_the_first_token_goes_to_another_instance(router, first, second, reason):
    first.script = [refuse(reason)]
    async with Client(router.address) as client:
        chunks = [chunk async for chunk in client.generate(model="toy", prompt="x")]
        assert (client.stats.retried, client.stats.retries, client.stats.failed) == (1, 1, 0)
    assert {chunk.attempts for chunk in chunks} == {2}
    assert chunks[-1].timing.instance_id == "w-2"
    again, request = router.routed[1], second.generated[0]
    assert list(again.excluded_instance_ids) == ["w-1"]
    assert (again.attempt, request.attempt) == (1, 1)
    assert again.request_id == request.request_id == first.generated[0].request_id
    assert request.ticket == b"ticket for w-2"


async def test_time_spent_adds_up_over_the_attempts(router, first, second):
    router.hold.clear()
    first.script = [refuse(Reason.RETRY_ELSEWHERE)]
    async with Client(router.address) as client:
        whole = asyncio.create_task(client.complete(model="toy", prompt="x"))
        await eventually(lambda: router.routed)
        router.hold.set()
        await whole
    spent = [
        router.routed[0].elapsed_ms,
        first.generated[0].elapsed_ms,
        router.routed[1].elapsed_ms,
        second.generated[0].elapsed_ms,
    ]
    assert spent == sorted(spent)
    assert spent[0] < spent[-1] <= (await whole).timing.client_ttft_ms


async def test_a_connection_lost_before_the_first_token_goes_to_another_instance(router, first, second):
    first.script = [stall()]
    async with Relay(first).running() as relay, Client(router.address) as client:
        first.address = relay.address
        whole = asyncio.create_task(client.complete(model="toy", prompt="x"))
        await eventually(lambda: first.running == 1)
        relay.cut()
        assert (await whole).timing.instance_id == "w-2"
        assert client.stats.retried == 1
    assert list(router.routed[1].excluded_instance_ids) == ["w-1"]


async def test_a_refused_connection_goes_to_another_instance_and_not_through_the_router(router, first):
    first.address = closed_port()
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x")
        assert client.stats.fallbacks == 0
    assert (whole.timing.instance_id, whole.attempts) == ("w-2", 2)


async def test_a_stream_that_may_not_be_resumed_tells_what_it_delivered(router, first, second):
    first.script = [break_off("Once", " upon")]
    async with Client(router.address, max_resumes=0) as client:
        stream = client.generate(model="toy", prompt="x")
        got = await anext(stream)
        with pytest.raises(StreamInterrupted) as caught:
            await anext(stream)
        assert (client.stats.failed, client.stats.retried) == (1, 0)
    (choice,) = caught.value.delivered
    assert got.text == "Once upon"
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("Once upon", (100, 101), None)
    assert caught.value.reason == "STREAM_INTERRUPTED"
    assert caught.value.message == "the worker was lost"
    assert not second.generated


async def test_a_connection_lost_after_the_first_token_interrupts_a_stream_that_may_not_be_resumed(
    router, first
):
    first.script = [stall("Once")]
    async with Relay(first).running() as relay, Client(router.address, max_resumes=0) as client:
        first.address = relay.address
        stream = client.generate(model="toy", prompt="x")
        await anext(stream)
        relay.cut()
        with pytest.raises(StreamInterrupted) as caught:
            await anext(stream)
    assert caught.value.delivered[0].token_ids == (100,)


async def test_a_whole_answer_that_may_not_be_resumed_is_started_again(router, first, second):
    first.script = [break_off("Never", " mind")]
    second.script = [answer("Once", " more")]
    async with Client(router.address, max_resumes=0) as client:
        whole = await client.complete(model="toy", prompt="x")
    assert (whole.text, whole.attempts) == ("Once more", 2)
    assert second.generated[0].attempt == 1


async def test_attempts_are_bounded_and_counted_in_the_error(router, first, second):
    first.script = [refuse(Reason.RETRY_ELSEWHERE, "draining")]
    router.workers = [first]
    first.name = "w-1"
    async with Client(router.address, max_attempts=1) as client:
        with pytest.raises(RetryElsewhere, match="draining"):
            await client.complete(model="toy", prompt="x")
    first.script = [break_off("a")]
    second.script = [break_off("b", "c")]
    router.workers = [first, second]
    async with Client(router.address, max_attempts=2, max_resumes=0) as client:
        with pytest.raises(StreamInterrupted) as caught:
            await client.complete(model="toy", prompt="x")
        assert (client.stats.retries, client.stats.failed) == (1, 1)
    assert caught.value.delivered[0].text == "bc"
    assert caught.value.__cause__.__notes__ == ["after 2 attempts"]


async def test_an_error_of_the_request_itself_is_not_tried_again(router, first):
    first.script = [refuse(Reason.INVALID_ARGUMENT, "prompt: too long")]
    async with Client(router.address) as client:
        with pytest.raises(Exception, match="prompt: too long"):
            await client.complete(model="toy", prompt="x")
        assert client.stats.retries == 0
    assert len(router.routed) == 1


async def test_a_model_without_an_instance_is_not_tried_again(router):
    router.refusal = ServerError(Reason.NO_INSTANCE, "the model failed to load")
    async with Client(router.address) as client:
        with pytest.raises(NoInstance, match="failed to load"):
            await client.complete(model="toy", prompt="x")
    assert len(router.routed) == 1


async def test_through_the_router_a_refusal_is_tried_again_there(router):
    router.script = [refuse(Reason.RETRY_ELSEWHERE), answer("ok")]
    async with Client(router.address, lookaside=False) as client:
        whole = await client.complete(model="toy", prompt="x")
    assert (whole.text, whole.attempts) == ("ok", 2)
    assert [each.attempt for each in router.generated] == [0, 1]


async def test_the_timeout_covers_the_wait_in_the_routers_queue(router):
    router.hold.clear()
    async with Client(router.address) as client:
        with pytest.raises(DeadlineExceeded, match=r"^timeout_s=0\.2 passed before the answer was complete$"):
            await client.complete(model="toy", prompt="x", timeout_s=0.2)
    router.hold.set()


async def test_the_timeout_ends_a_stream_and_frees_the_worker(router, first):
    first.script = [stall("Once")]
    async with Client(router.address, timeout_s=0.5) as client:
        stream = client.generate(model="toy", prompt="x")
        assert (await anext(stream)).text == "Once"
        with pytest.raises(DeadlineExceeded, match=r"^timeout_s=0\.5 passed before the answer was complete$"):
            await anext(stream)
        await eventually(lambda: first.cancelled == 1)


async def test_an_interruption_names_the_instance_that_was_lost(router, first):
    first.script = [stall("Once")]
    async with Relay(first).running() as relay, Client(router.address, max_resumes=0) as client:
        first.address = relay.address
        stream = client.generate(model="toy", prompt="x")
        await anext(stream)
        relay.cut()
        with pytest.raises(StreamInterrupted, match=rf"^instance w-1 at {relay.address} was lost: "):
            await anext(stream)


async def test_through_the_router_an_interruption_of_the_wire_names_the_router(router):
    router.script = [stall("Once")]
    async with (
        Relay(router).running() as relay,
        Client(relay.address, lookaside=False, max_resumes=0) as client,
    ):
        stream = client.generate(model="toy", prompt="x")
        await anext(stream)
        relay.cut()
        with pytest.raises(StreamInterrupted, match=rf"^router {relay.address} was lost: "):
            await anext(stream)


LAST = pb.OutputDelta(
    first_token_index=1, finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(), timing=pb.Timing()
)


@pytest.mark.parametrize(
    ("deltas", "fault"),
    [
        ([delta(["a"], 0), delta(["a"], 0)], "token repeated: choice 0 has 1 tokens, the next .* at 0"),
        ([delta(["a"], 0), delta(["c"], 2)], "token skipped: choice 0 has 1 tokens, the next .* at 2"),
        ([delta(["a"], 1)], "token skipped"),
        ([delta(["a"], 0)], "the stream ended, but choice 0 did not"),
        ([delta(["a"], 0), pb.OutputDelta(first_token_index=1, finish_reason=1)], "without usage"),
        ([delta(["a"], 0), LAST, delta(["b"], 1)], "follows the last"),
        ([delta(["a"], 0, choice=1)], "choice 1 of 1"),
    ],
)
async def test_a_stream_that_breaks_the_protocol_is_reported_and_not_tried_again(
    router, first, deltas, fault
):
    first.script = [send(*deltas)]
    async with Client(router.address) as client:
        with pytest.raises(ProtocolError, match=fault):
            await client.complete(model="toy", prompt="x")
    assert len(router.routed) == 1


async def test_a_lost_router_is_tried_again_within_the_bound(first):
    router = FakeRouter(first, script=(stall(),))
    async with (
        serving(first, router),
        Relay(router).running() as relay,
        Client(relay.address, lookaside=False, max_attempts=2) as client,
    ):
        whole = asyncio.create_task(client.complete(model="toy", prompt="x"))
        for tries in (1, 2):
            await eventually(lambda tries=tries: len(router.generated) == tries)
            relay.cut()
        with pytest.raises(ConnectionLost):
            await whole
        assert len(router.generated) == 2


QUOTA = ServerError(Reason.QUOTA_EXCEEDED, "as many as its quota allows at once", retry_after_s=30.0)


async def test_a_retry_that_its_own_first_attempt_keeps_out_comes_again_soon(router, first):
    first.script = [refuse(Reason.ENGINE_DEAD)]
    router.refusals = [None, QUOTA]
    async with Client(router.address) as client:
        answered = await client.complete(model="toy", prompt="x", timeout_s=20.0)
    assert (answered.attempts, len(router.routed)) == (3, 3)


async def test_a_stream_goes_on_although_its_first_attempt_still_counts_towards_the_quota(router, first):
    first.script = [break_off("Once", " upon")]
    router.refusals = [None, QUOTA]
    async with Client(router.address) as client:
        chunks = [chunk async for chunk in client.generate(model="toy", prompt="x", timeout_s=20.0)]
    assert "".join(chunk.text for chunk in chunks) == "Once upon a time"


async def test_a_request_over_the_quota_is_not_tried_again(router):
    router.refusals = [QUOTA]
    async with Client(router.address) as client:
        with pytest.raises(Overloaded):
            await client.complete(model="toy", prompt="x")
    assert len(router.routed) == 1


async def test_a_quota_that_stays_used_up_ends_the_retries(router, first):
    first.script = [refuse(Reason.ENGINE_DEAD)]
    router.refusals = [None, QUOTA, QUOTA]
    async with Client(router.address, max_attempts=3) as client:
        with pytest.raises(Overloaded):
            await client.complete(model="toy", prompt="x", timeout_s=20.0)
    assert len(router.routed) == 3
