"""What a caller sees of a request that goes well, streamed or whole, direct or through the router."""

from __future__ import annotations

import asyncio

import pytest

from chiron.client import Client, FinishReason, InvalidRequest, Message, RequestClass, Slo, Usage
from chiron.v1 import types_pb2
from tests.support.fake_inference import WORDS, FakeDoor, FakeRouter, answer, serving, stall
from tests.support.wait import eventually


@pytest.fixture
async def worker():
    return FakeDoor("w-1", answer())


@pytest.fixture
async def router(worker):
    router = FakeRouter(worker)
    async with serving(worker, router):
        yield router


async def test_a_stream_delivers_text_and_tokens_in_order(router):
    async with Client(router.address) as client:
        chunks = [chunk async for chunk in client.generate(model="toy", prompt="Tell me a story.")]
    assert "".join(chunk.text for chunk in chunks) == "Once upon a time"
    assert [token for chunk in chunks for token in chunk.token_ids] == [100, 101, 102, 103]
    assert [chunk.first_token_index for chunk in chunks] == [0, 1, 2, 3, 4]
    assert {chunk.attempts for chunk in chunks} == {1}


async def test_chunks_name_the_instance_that_is_streamed_from_directly(router):
    async with Client(router.address) as client:
        direct = {chunk.instance_id async for chunk in client.generate(model="toy", prompt="x")}
    async with Client(router.address, lookaside=False) as client:
        proxied = {chunk.instance_id async for chunk in client.generate(model="toy", prompt="x")}
    assert (direct, proxied) == ({"w-1"}, {""})


async def test_only_the_last_chunk_has_finish_usage_and_timing(router):
    async with Client(router.address) as client:
        *early, last = [chunk async for chunk in client.generate(model="toy", prompt="x")]
    assert all((each.finish_reason, each.usage, each.timing) == (None, None, None) for each in early)
    assert last.finish_reason is FinishReason.STOP
    assert last.usage == Usage(prompt_tokens=5, cached_prompt_tokens=2, completion_tokens=4)
    assert (last.timing.ttft_ms, last.timing.queue_ms, last.timing.preemptions) == (12, 3, 1)
    assert last.timing.instance_id == "w-1"
    assert 0 < last.timing.client_ttft_ms <= last.timing.client_total_ms
    assert last.timing.client_itl_mean_ms <= last.timing.client_itl_max_ms


async def test_a_completion_holds_the_whole_answer(router):
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x", request_id="r-7")
    assert (whole.text, whole.token_ids) == ("Once upon a time", (100, 101, 102, 103))
    assert (whole.request_id, whole.model, whole.attempts) == ("r-7", "toy", 1)
    assert (whole.finish_reason, whole.usage.completion_tokens) == (FinishReason.STOP, 4)


async def test_several_choices_come_apart(router, worker):
    worker.script = [answer("a", "b", "c", choices=2, per_message=2)]
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x", n=2)
    assert [choice.text for choice in whole.choices] == ["abc", "abc"]
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage.completion_tokens == 6


async def test_lookaside_asks_the_router_once_and_streams_from_the_worker(router, worker):
    async with Client(router.address) as client:
        await client.complete(
            model="toy",
            prompt="12345678",
            max_tokens=32,
            slo=Slo(ttft_ms=1000, itl_ms=100),
            request_class=RequestClass.BATCH,
            priority=3,
            adapter="poet",
        )
    (route,), (request,) = router.routed, worker.generated
    assert not router.generated
    assert request.ticket == b"ticket for w-1"
    assert route.request_id == request.request_id != ""
    assert (route.model, route.adapter, route.priority, route.max_tokens) == ("toy", "poet", 3, 32)
    assert route.request_class == types_pb2.REQUEST_CLASS_BATCH
    assert (route.slo.ttft_ms, route.slo.itl_ms, route.slo.HasField("deadline_s")) == (1000, 100, False)
    assert route.prompt_tokens == 2
    assert (route.attempt, list(route.excluded_instance_ids)) == (0, [])


async def test_without_lookaside_everything_goes_through_the_router(router, worker):
    async with Client(router.address, lookaside=False) as client:
        whole = await client.complete(model="toy", prompt="x")
        assert client.stats.fallbacks == 0
    assert whole.timing.instance_id == "router"
    assert not router.routed
    assert not worker.generated
    assert router.generated[0].ticket == b""


async def test_a_chat_and_its_tools_travel_as_they_are(router, worker):
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    async with Client(router.address) as client:
        await client.complete(
            model="toy",
            messages=[Message("system", "Be brief."), {"role": "user", "content": "Hi"}],
            tools=[tool],
        )
    chat = worker.generated[0].chat
    assert [(each.role, each.content) for each in chat.messages] == [("system", "Be brief."), ("user", "Hi")]
    assert chat.tools[0]["function"]["name"] == "now"


async def test_many_requests_share_one_connection_per_worker(router, worker):
    async with Client(router.address) as client:
        for _ in range(5):
            await client.complete(model="toy", prompt="x")
        assert client.stats.requests == 5
        assert (client.stats.failed, client.stats.retried, client.stats.fallbacks) == (0, 0, 0)
    assert len(worker.generated) == 5


async def test_leaving_the_stream_cancels_the_request_on_the_worker(router, worker):
    worker.script = [stall("Once")]
    async with Client(router.address) as client:
        async with client.generate(model="toy", prompt="x") as stream:
            assert (await anext(stream)).text == "Once"
        await eventually(lambda: worker.cancelled == 1)
        assert client.stats.failed == 0


async def test_cancelling_the_reader_cancels_the_request_on_the_worker(router, worker):
    worker.script = [stall()]
    async with Client(router.address) as client:
        reader = asyncio.create_task(client.complete(model="toy", prompt="x"))
        await eventually(lambda: worker.running == 1)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        await eventually(lambda: worker.cancelled == 1)


async def test_a_dropped_stream_is_cancelled(router, worker):
    worker.script = [stall("Once")]
    async with Client(router.address) as client:
        async for _ in client.generate(model="toy", prompt="x"):
            break
        await eventually(lambda: worker.cancelled == 1)


async def test_the_prompt_itself_never_goes_to_the_router(router):
    async with Client(router.address) as client:
        await client.complete(model="toy", prompt="a secret story")
    assert b"secret" not in router.routed[0].SerializeToString()


async def test_arguments_that_make_no_request_fail_before_anything_is_sent(router):
    async with Client(router.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            client.generate(model="toy", prompt="x", prompt_token_ids=[1])
        assert caught.value.violations[0].field == "input"
        assert client.stats.requests == 0
    assert not router.routed


async def test_words_of_the_script_are_what_arrives(router):
    async with Client(router.address) as client:
        texts = [chunk.text async for chunk in client.generate(model="toy", prompt_token_ids=[1, 2])]
    assert texts == [*WORDS, ""]
    assert router.routed[0].prompt_tokens == 2


@pytest.mark.parametrize("timeout_s", [1e9, 1e18, float("inf"), 10**400])
async def test_a_timeout_that_nobody_lives_to_see_is_none(router, timeout_s):
    async with Client(router.address, timeout_s=timeout_s) as client:
        assert (await client.complete(model="toy", prompt="x")).text == "Once upon a time"
    async with Client(router.address, timeout_s=1e-9) as client:
        assert (
            await client.complete(model="toy", prompt="x", timeout_s=timeout_s)
        ).text == "Once upon a time"
