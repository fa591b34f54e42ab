"""What OpenAI's own client is told of whole answers, and of requests that are refused."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from pydantic import BaseModel

from chiron.rpc.errors import ChironError
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.http_door import ANY, openai_at, post
from tests.support.openai_streams import Choice, answer, arrived, messages

HELLO = [{"role": "user", "content": "hello"}]
TIMING = pb.Timing(ttft_ms=12.5, itl_mean_ms=3.0, instance_id="a")


@pytest.fixture
async def served(start_worker, start_router):
    worker = await start_worker("a")
    router = await start_router(worker, http=ANY)
    async with openai_at(router.router.http_url) as client:
        yield client, worker, router


def whole(*choices: Choice) -> list[pb.GenerateResponse]:
    return messages(list(choices), [[]] * len(choices))


async def test_a_chat_is_answered_as_a_whole(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(
        client.chat.completions.with_raw_response.create(model="m", messages=HELLO, max_tokens=5)
    )
    call = await arrived(worker, asked)
    assert call.request.chat.messages[0].content == "hello"
    assert call.request.sampling.max_tokens == 5
    answer(call, whole(Choice(["Hel", "lo"])), TIMING)
    raw = await asked
    got = raw.parse()
    assert (got.object, got.model) == ("chat.completion", "m")
    [choice] = got.choices
    assert (choice.message.content, choice.finish_reason, choice.message.role) == (
        "Hello",
        "stop",
        "assistant",
    )
    assert got.usage is not None
    assert got.usage.prompt_tokens_details is not None
    assert (got.usage.total_tokens, got.usage.prompt_tokens_details.cached_tokens) == (16, 4)
    assert (raw.headers["x-chiron-instance"], raw.headers["x-chiron-ttft-ms"]) == ("a", "12.500")
    assert got.id == "chatcmpl-" + raw.headers["x-request-id"].removeprefix("req-")
    assert call.request.request_id == raw.headers["x-request-id"]


class Mood(BaseModel):
    """What is asked for."""

    mood: str
    waves: int


async def test_an_answer_is_parsed_into_the_caller_s_type(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(
        client.chat.completions.parse(model="m", messages=HELLO, response_format=Mood)
    )
    call = await arrived(worker, asked)
    schema = json.loads(call.request.sampling.structured_output.json_schema)
    assert schema["properties"].keys() == {"mood", "waves"}
    answer(call, whole(Choice(['{"mood": "calm",', ' "waves": 3}'])))
    assert (await asked).choices[0].message.parsed == Mood(mood="calm", waves=3)


async def test_several_prompts_are_answered_as_one(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(client.completions.create(model="m", prompt=["one", "two"], n=2))
    for call in [await arrived(worker, asked), await arrived(worker, asked)]:
        prompt = call.request.prompt
        answer(call, whole(Choice([f"{prompt} a"]), Choice([f"{prompt} b"])))
    got = await asked
    assert got.id == f"cmpl-{got._request_id}".replace("req-", "")
    assert [choice.text for choice in got.choices] == ["one a", "one b", "two a", "two b"]
    assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
    assert got.usage is not None
    assert got.usage.prompt_tokens == 14


async def test_one_failure_ends_all_prompts(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(client.completions.create(model="m", prompt=["one", "two", "three"]))
    calls = [await arrived(worker, asked) for _ in range(3)]
    calls[1].fail(ChironError.invalid([("prompt", "cannot be read")]))
    with pytest.raises(openai.BadRequestError, match="prompt: cannot be read"):
        await asked
    for call in (calls[0], calls[2]):
        await asyncio.wait_for(call.ended.wait(), 5)
        assert call.cancelled


async def test_what_a_worker_refuses_is_named_as_the_caller_wrote_it(served) -> None:
    client, worker, _ = served
    worker.refuse_with = ChironError.invalid([("sampling.structured_output.regex", "cannot be compiled")])
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="m", messages=HELLO, extra_body={"structured_outputs": {"regex": "("}}
        )
    assert caught.value.param == "response_format.regex"
    assert "cannot be compiled" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"extra_body": {"nonsense": 1}}, "nonsense", "unknown_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"n": 17}, "n", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"extra_headers": {"x-chiron-ttft-ms": "soon"}}, "x-chiron-ttft-ms", "invalid_value"),
    ],
)
async def test_a_bad_request_is_refused_by_its_field(served, fields, param: str, code: str) -> None:
    client, worker, _ = served
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="m", messages=HELLO, **fields)
    assert (caught.value.param, caught.value.code, caught.value.type) == (
        param,
        code,
        "invalid_request_error",
    )
    assert worker.calls.empty()


async def test_a_model_that_is_not_there_is_not_found(served) -> None:
    client, _, _ = served
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="other", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="m:other", prompt="x")


async def test_malformed_json_is_a_bad_request(served) -> None:
    _, _, router = served
    for path in ("/v1/chat/completions", "/v1/completions"):
        got = await post(router.router.http_url, path, b'{"model": ')
        assert got.status == 400
        assert "JSON" in got.error["message"]


async def test_a_full_queue_is_a_rate_limit(start_worker, start_router) -> None:
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, http=ANY, worker_queue=0, queue_limit=1)
    async with openai_at(router.router.http_url) as client:
        waiting = asyncio.create_task(client.completions.create(model="m", prompt="x"))
        await router.queued(1)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.completions.create(model="m", prompt="x", stream=stream)
            assert caught.value.code == "queue_full"
            assert int(caught.value.response.headers["retry-after"]) >= 1
        worker.load.running.interactive = 0
        worker.publish()
        answer(await arrived(worker, waiting), whole(Choice(["done"])))
        assert (await waiting).choices[0].text == "done"


async def test_promises_reach_the_worker(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(
        client.chat.completions.create(
            model="m",
            messages=HELLO,
            service_tier="flex",
            extra_headers={"x-chiron-deadline-s": "60"},
            extra_body={"priority": 3},
        )
    )
    call = await arrived(worker, asked)
    assert call.request.request_class == types_pb2.REQUEST_CLASS_BATCH
    assert call.request.slo.deadline_s == 60
    assert call.request.priority == 3
    answer(call, whole(Choice(["x"])))
    assert (await asked).service_tier == "flex"


async def test_an_answer_that_the_engine_gave_up_is_an_error(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(client.completions.create(model="m", prompt="x"))
    answer(await arrived(worker, asked), whole(Choice(["a"], pb.FINISH_REASON_ABORT)))
    with pytest.raises(openai.InternalServerError) as caught:
        await asked
    assert caught.value.code == "aborted"


async def test_an_answer_without_its_end_is_an_error(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(client.completions.create(model="m", prompt="x"))
    call = await arrived(worker, asked)
    call.text("a")
    call.finish()
    with pytest.raises(openai.InternalServerError):
        await asked


async def test_a_message_that_cannot_be_read_is_an_error(served) -> None:
    client, worker, _ = served
    for stream in (False, True):
        asked = asyncio.create_task(client.completions.create(model="m", prompt="x", n=2, stream=stream))
        call = await arrived(worker, asked)
        call.send(b"\xff\xff")
        call.finish()
        with pytest.raises(openai.InternalServerError):
            await asked


async def test_a_client_that_leaves_frees_the_slot(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(client.completions.create(model="m", prompt=["x", "y"]))
    calls = [await arrived(worker, asked), await arrived(worker, asked)]
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    for call in calls:
        await asyncio.wait_for(call.ended.wait(), 5)
        assert call.cancelled
