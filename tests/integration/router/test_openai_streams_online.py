"""What OpenAI's own client is told of answers that are streamed."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import inference_pb2 as pb
from services.router.http import running
from tests.support.http_door import ANY, RawConnection, openai_at, post
from tests.support.openai_streams import Choice, answer, arrived, messages
from tests.support.wait import eventually

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
async def served(start_worker, start_router):
    worker = await start_worker("a")
    router = await start_router(worker, http=ANY)
    async with openai_at(router.router.http_url) as client:
        yield client, worker, router


def chat(client: openai.AsyncOpenAI, **fields):
    asked = client.chat.completions.create(model="m", messages=HELLO, stream=True, **fields)
    return asyncio.create_task(asked)


async def test_each_message_of_the_worker_is_one_chunk_at_once(served) -> None:
    client, worker, _ = served
    asked = chat(client)
    call = await arrived(worker, asked)
    first, second, last = messages([Choice(["Hel", "lo", " you", "!"])], [[1, 3]])
    call.send(first)
    stream = await asked
    chunk = await anext(stream)
    assert (chunk.choices[0].delta.role, chunk.choices[0].delta.content) == ("assistant", "Hel")
    call.send(second)
    chunk = await anext(stream)
    assert (chunk.choices[0].delta.role, chunk.choices[0].delta.content) == (None, "lo you")
    call.send(last)
    call.finish()
    chunk = await anext(stream)
    assert (chunk.choices[0].delta.content, chunk.choices[0].finish_reason) == ("!", "stop")
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_usage_comes_in_a_chunk_of_its_own(served) -> None:
    client, worker, _ = served
    asked = chat(client, stream_options={"include_usage": True, "include_obfuscation": False})
    answer(await arrived(worker, asked), messages([Choice(["a", "b"])], [[1]]))
    *chunks, last = [chunk async for chunk in await asked]
    assert [chunk.usage for chunk in chunks] == [None, None]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 16


async def test_the_streaming_helper_puts_the_answer_together(served) -> None:
    client, worker, _ = served

    async def answered() -> None:
        call = await worker.calls.get()
        answer(call, messages([Choice(["Hel", "lo"]), Choice(["B", "ye"])], [[1], [1]]))

    answering = asyncio.create_task(answered())
    async with client.chat.completions.stream(model="m", messages=HELLO, n=2) as stream:
        got = await stream.get_final_completion()
    await answering
    assert [choice.message.content for choice in got.choices] == ["Hello", "Bye"]


async def test_the_streams_of_several_prompts_are_one(served) -> None:
    client, worker, _ = served
    asked = asyncio.create_task(
        client.completions.create(
            model="m",
            prompt=["one", "two"],
            stream=True,
            extra_body={"stream_options": {"include_usage": True}},
        )
    )
    for call in [await arrived(worker, asked), await arrived(worker, asked)]:
        answer(call, messages([Choice([call.request.prompt, "!"])], [[1]]))
    texts = {0: "", 1: ""}
    usage = None
    async for chunk in await asked:
        usage = chunk.usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "one!", 1: "two!"}
    assert usage is not None
    assert usage.prompt_tokens == 14


async def test_a_refusal_before_the_first_token_is_a_plain_error(served) -> None:
    client, worker, _ = served
    worker.refuse_with = ChironError.invalid([("chat.messages[0]", "too long")])
    with pytest.raises(openai.BadRequestError) as caught:
        await chat(client)
    assert caught.value.param == "messages[0]"


async def test_what_fails_after_the_first_token_is_an_event_and_ends_the_stream(served) -> None:
    client, worker, _ = served
    asked = chat(client, n=2)
    call = await arrived(worker, asked)
    call.send(messages([Choice(["a", "b"]), Choice(["c"])], [[1], []])[0])
    stream = await asked
    assert (await anext(stream)).choices[0].delta.content == "a"
    call.fail(ChironError(Reason.STREAM_INTERRUPTED, "its time is up"))
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "server_error"


async def test_what_the_engine_gave_up_is_an_event(served) -> None:
    client, worker, _ = served
    asked = chat(client)
    answer(await arrived(worker, asked), messages([Choice(["a", "b"], pb.FINISH_REASON_ABORT)], [[1]]))
    stream = await asked
    await anext(stream)
    with pytest.raises(openai.APIError, match="gave the answer up"):
        await anext(stream)


async def test_a_client_that_closes_its_stream_frees_the_slot(served) -> None:
    client, worker, _ = served
    asked = chat(client)
    call = await arrived(worker, asked)
    call.send(messages([Choice(["a", "b"])], [[1]])[0])
    stream = await asked
    await anext(stream)
    await stream.close()
    await asyncio.wait_for(call.ended.wait(), 5)
    assert call.cancelled


async def test_a_client_that_reads_nothing_keeps_its_worker_waiting(served) -> None:
    _, worker, router = served
    reader = await RawConnection.open(router.router.http_url, limit=1024)
    body = b'{"model": "m", "prompt": "x", "stream": true}'
    head = ("POST /v1/completions HTTP/1.1", "host: door", f"content-length: {len(body)}")
    reader.send(*head, body=body)
    call = await worker.calls.get()
    piece = messages([Choice(["x" * 100_000, "y"])], [[1]])[0]
    for _ in range(400):
        call.send(piece)
    [stream] = router.router._streams._streams
    await eventually(lambda: stream.writing_since > 0 and call._out.qsize() > 100)
    waiting = call._out.qsize()
    since = stream.writing_since
    assert await eventually(lambda: stream.writing_since == since)
    assert call._out.qsize() == waiting
    reader.close()
    await asyncio.wait_for(call.ended.wait(), 5)


@pytest.fixture
async def full(start_worker, start_router, monkeypatch: pytest.MonkeyPatch):
    """A router on whose only instance is no place, and which says at once that a request waits."""
    monkeypatch.setattr(running, "_QUIET_MS", 1.0)
    worker = await start_worker("a", batch_size=1)
    worker.load.running.interactive = 1
    router = await start_router(worker, http=ANY, worker_queue=0)
    async with openai_at(router.router.http_url) as client:
        yield client, worker


async def test_a_request_that_waits_for_long_is_told_so_by_comments(full) -> None:
    client, worker = full
    stream = await chat(client)
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    worker.load.running.interactive = 0
    worker.publish()
    answer(await worker.calls.get(), messages([Choice(["b"])], [[]]))
    assert [chunk.choices[0].delta.content async for chunk in stream] == ["b"]


async def test_what_fails_after_a_comment_is_an_event(full) -> None:
    client, _ = full
    stream = await chat(client, extra_body={"slo": {"deadline_s": 1.5}})
    with pytest.raises(openai.APIError) as caught:
        await anext(stream)
    assert caught.value.code == "deadline_exceeded"


async def test_a_stream_that_waits_for_another_instance_is_told_so_and_goes_on(
    start_worker, start_router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_QUIET_MS", 1.0)
    lost, other = await start_worker("a"), await start_worker("b", batch_size=1)
    other.load.running.interactive = 1
    router = await start_router(lost, other, http=ANY, worker_queue=0, retry_pause_s=0.05)
    asked = asyncio.create_task(
        post(
            router.router.http_url,
            "/v1/completions",
            {"model": "m", "prompt": "x", "stream": True, "temperature": 0},
        )
    )
    begun = await arrived(lost, asked)
    first, last = messages([Choice(["a", "b"])], [[1]])
    first.deltas[0].origin.spec_version = 0
    begun.send(first)
    [stream] = await eventually(lambda: router.router._streams._streams)
    await eventually(lambda: stream.delivered)
    await lost.stop()
    await router.queued(1)
    other.load.running.interactive = 0
    other.publish()
    call = await arrived(other, asked)
    assert list(call.request.resume.delivered_token_ids) == [0]
    answer(call, [last])
    told = (await asked).body.decode()
    begins, waits, ends = told.index('"text":"a"'), told.index("\n: "), told.index('"text":"b"')
    assert begins < waits < ends
    assert told.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_stream_has_chunks_only_where_the_client_knows_them(served, version: str) -> None:
    _, worker, router = served
    connection = await RawConnection.open(router.router.http_url)
    body = b'{"model": "m", "prompt": "x", "stream": true}'
    length = f"content-length: {len(body)}"
    connection.send(f"POST /v1/completions HTTP/{version}", "host: x", "connection: close", length, body=body)
    call = await worker.calls.get()
    answer(call, messages([Choice(["Hel", "lo"])], [[1]]))
    head, _, events = (await connection.closed()).partition(b"\r\n\r\n")
    connection.close()
    assert (b"transfer-encoding" in head.lower()) == (version == "1.1")
    if version == "1.0":
        lines = [line for line in events.decode().split("\n\n") if line]
        assert all(line.startswith("data: ") for line in lines)
        assert lines[-1] == "data: [DONE]"
        texts = [json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1]]
        assert "".join(texts) == "Hello"
