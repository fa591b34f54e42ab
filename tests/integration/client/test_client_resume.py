"""A stream that breaks after its first token goes on elsewhere; what cannot ends with the reason."""

from __future__ import annotations

import asyncio

import pytest

from chiron.client import CannotResume, Client, ProtocolError, StreamInterrupted
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

ORIGIN = pb.StreamOrigin(spec_version=3, cached_prompt_tokens=2, ttft_ms=12.0)


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


@pytest.mark.parametrize("reason", [Reason.STREAM_INTERRUPTED, Reason.ENGINE_DEAD, Reason.RETRY_ELSEWHERE])
async def test_a_stream_goes_on_at_another_instance(router, first, second, reason):
    first.script = [break_off("Once", " upon", reason=reason)]
    router.spec_version = 7
    async with Client(router.address) as client:
        chunks = [chunk async for chunk in client.generate(model="toy", prompt="x")]
        stats = client.stats
        assert (stats.requests, stats.failed, stats.resumed, stats.resumes) == (1, 0, 1, 1)
        assert (stats.retried, stats.retries) == (1, 1)
    assert "".join(chunk.text for chunk in chunks) == "Once upon a time"
    assert [chunk.attempts for chunk in chunks] == [1, 2, 2, 2]
    begun, route = router.routed
    assert (begun.spec_version, begun.attempt, list(begun.excluded_instance_ids)) == (0, 0, [])
    assert (route.spec_version, route.attempt, list(route.excluded_instance_ids)) == (7, 1, ["w-1"])
    request = second.generated[0]
    assert not first.generated[0].HasField("resume")
    assert list(request.resume.delivered_token_ids) == [100, 101]
    assert request.resume.delivered_text_length == len("Once upon")
    assert request.resume.origin.spec_version == 7
    assert (request.attempt, request.ticket) == (1, b"ticket for w-2")
    assert request.elapsed_ms >= route.elapsed_ms > 0


async def test_what_the_stream_began_with_travels_along(router, first, second):
    begin = delta(["Once"], 0)
    begin.origin.CopyFrom(ORIGIN)
    first.script = [_then_break(begin)]
    async with Client(router.address) as client:
        await client.complete(model="toy", prompt="x")
    assert second.generated[0].resume.origin == ORIGIN
    assert router.routed[1].spec_version == 3


async def test_several_breaks_add_up(router, first, second):
    first.script = [break_off("Once"), break_off(" a")]
    second.script = [break_off(" upon"), answer()]
    router.workers.reverse()
    router.workers = [_Alternating(first, second)]
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x")
        assert (client.stats.resumed, client.stats.resumes) == (1, 3)
    assert (whole.text, whole.attempts) == ("Once upon a time", 4)
    assert [len(each.resume.delivered_token_ids) for each in first.generated + second.generated] == [
        0,
        2,
        1,
        3,
    ]


async def test_progress_starts_the_count_of_attempts_anew(router, first):
    router.workers = [first]
    first.name = ""
    first.script = [break_off("Once"), break_off(" upon"), break_off(" a"), answer()]
    async with Client(router.address, max_attempts=2) as client:
        assert (await client.complete(model="toy", prompt="x")).attempts == 4


async def test_attempts_without_progress_are_bounded(router, first):
    router.workers = [first]
    first.name = ""
    first.script = [break_off("Once"), refuse(Reason.STREAM_INTERRUPTED, "lost again")]
    async with Client(router.address, max_attempts=3) as client:
        with pytest.raises(StreamInterrupted, match="lost again") as caught:
            [chunk async for chunk in client.generate(model="toy", prompt="x")]
    assert caught.value.delivered[0].text == "Once"
    assert len(first.generated) == 3


async def test_resumes_are_bounded(router, first):
    router.workers = [first]
    first.name = ""
    first.script = [break_off(".")]
    async with Client(router.address, max_resumes=5) as client:
        with pytest.raises(StreamInterrupted) as caught:
            [chunk async for chunk in client.generate(model="toy", prompt="x")]
    assert caught.value.delivered[0].text == "......"


async def test_a_lost_connection_is_a_break_too(router, first, second):
    first.script = [stall("Once")]
    async with Relay(first).running() as relay, Client(router.address) as client:
        first.address = relay.address
        stream = client.generate(model="toy", prompt="x")
        text = (await anext(stream)).text
        relay.cut()
        async for chunk in stream:
            text += chunk.text
    assert text == "Once upon a time"


async def test_a_stream_that_loses_its_worker_and_its_router_goes_on_through_another_router(
    router, first, second
):
    first.script = [stall("Once")]
    async with (
        Relay(first).running() as to_worker,
        Relay(router).running() as to_router,
        Client([to_router.address, router.address]) as client,
    ):
        first.address = to_worker.address
        stream = client.generate(model="toy", prompt="x")
        text = (await anext(stream)).text
        to_router.close()
        to_worker.cut()
        async for chunk in stream:
            text += chunk.text
        assert client.stats.resumed == 1
    assert text == "Once upon a time"


async def test_a_proxied_stream_that_loses_its_router_goes_on_through_another(router, second):
    router.script = [stall("Once"), answer()]
    async with (
        Relay(router).running() as relay,
        Client([relay.address, router.address], lookaside=False) as client,
    ):
        stream = client.generate(model="toy", prompt="x")
        text = (await anext(stream)).text
        relay.cut()
        async for chunk in stream:
            text += chunk.text
    assert text == "Once upon a time"
    assert [each.attempt for each in router.generated] == [0, 1]
    assert list(router.generated[1].resume.delivered_token_ids) == [100]


async def test_a_proxied_stream_that_loses_its_only_router_goes_on_once_that_is_back():
    router = FakeRouter(script=(stall("Once"), answer()))
    address = closed_port()
    ports = {router: int(address.rsplit(":")[1])}
    async with Client(address, lookaside=False) as client:
        async with serving(router, ports=ports):
            stream = client.generate(model="toy", prompt="x")
            text = (await anext(stream)).text
        rest = asyncio.create_task(anext(stream))
        done, _ = await asyncio.wait({rest}, timeout=0.5)
        assert not done
        async with serving(router, ports=ports):
            text += (await rest).text
            async for chunk in stream:
                text += chunk.text
        assert client.stats.resumed == 1
    assert text == "Once upon a time"


async def test_an_attempt_that_a_lost_router_made_is_outnumbered(router, second):
    busy = refuse(Reason.DUPLICATE_REQUEST, "live here with attempt 4", metadata={"attempt": "4"})
    router.script = [stall("Once"), busy, answer()]
    async with (
        Relay(router).running() as relay,
        Client([relay.address, router.address], lookaside=False) as client,
    ):
        stream = client.generate(model="toy", prompt="x")
        await anext(stream)
        relay.cut()
        chunks = [chunk async for chunk in stream]
    assert [each.attempt for each in router.generated] == [0, 1, 5]
    assert chunks[-1].attempts == 3


@pytest.mark.parametrize("lookaside", [True, False])
async def test_what_cannot_be_resumed_ends_with_the_reason(router, first, second, lookaside):
    refusal = refuse(Reason.CANNOT_RESUME, "it has a seed")
    first.script, second.script = [break_off("Once")], [refusal]
    router.script = [break_off("Once"), refusal]
    async with Client(router.address, lookaside=lookaside) as client:
        with pytest.raises(CannotResume, match="it has a seed") as caught:
            [chunk async for chunk in client.generate(model="toy", prompt="x")]
        assert client.stats.failed == 1
    assert caught.value.reason == "CANNOT_RESUME"
    assert caught.value.delivered[0].token_ids == (100,)


async def test_several_choices_are_not_resumed(router, first, second):
    first.script = [break_off("Once")]
    async with Client(router.address) as client:
        with pytest.raises(CannotResume, match="several choices") as caught:
            [chunk async for chunk in client.generate(model="toy", prompt="x", n=2)]
    assert [choice.text for choice in caught.value.delivered] == ["Once", ""]
    assert not second.generated


async def test_a_whole_answer_that_cannot_be_resumed_begins_again(router, first, second):
    first.script = [break_off("Never", " mind")]
    second.script = [refuse(Reason.CANNOT_RESUME, "it has a seed"), answer()]
    router.workers = [_Alternating(first, second, second)]
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x")
        assert client.stats.failed == 0
    assert (whole.text, whole.attempts) == ("Once upon a time", 3)
    assert not second.generated[1].HasField("resume")


async def test_a_whole_answer_of_several_choices_begins_again(router, first, second):
    first.script = [break_off("Never")]
    second.script = [answer(choices=2)]
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x", n=2)
    assert [choice.text for choice in whole.choices] == ["Once upon a time"] * 2


async def test_a_router_without_the_weights_ends_the_stream(router, first):
    first.script = [break_off("Once")]
    async with Client(router.address) as client:
        stream = client.generate(model="toy", prompt="x")
        await anext(stream)
        router.refusal = ServerError(Reason.CANNOT_RESUME, "no instance serves those weights")
        with pytest.raises(CannotResume, match="those weights"):
            await anext(stream)


async def test_nothing_is_owed_after_the_last_chunk(router, first, second):
    end = pb.OutputDelta(
        first_token_index=1, finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(), timing=pb.Timing()
    )
    first.script = [_then_break(delta(["Once"], 0), end)]
    async with Client(router.address) as client:
        chunks = [chunk async for chunk in client.generate(model="toy", prompt="x")]
        assert (client.stats.failed, client.stats.resumed) == (0, 0)
    assert chunks[-1].finish_reason == "stop"
    assert not second.generated


async def test_a_resumed_stream_that_repeats_a_token_is_reported(router, first, second):
    first.script = [break_off("Once", " upon")]
    second.script = [send(delta([" upon"], 1))]
    async with Client(router.address) as client:
        with pytest.raises(ProtocolError, match="token repeated"):
            [chunk async for chunk in client.generate(model="toy", prompt="x")]


def _then_break(*deltas):
    async def behave(door, request, context):
        for each in deltas:
            yield pb.GenerateResponse(deltas=[each])
        async for response in refuse(Reason.STREAM_INTERRUPTED)(door, request, context):
            yield response

    return behave


class _Alternating:
    """Stands for a list of workers of which the router picks one after the other."""

    def __init__(self, *doors):
        self._doors = list(doors)
        self.name = ""

    @property
    def address(self):
        self._doors.append(self._doors.pop(0))
        return self._doors[-1].address
