"""OpenAI's own clients, unchanged, against a cluster of sim engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from tests.support.openai_batches import created, jsonl, line, once, read

pytestmark = pytest.mark.asyncio(loop_scope="module")

HELLO: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL: list[Any] = [{"role": "user", "content": 'say I look.\ncall weather {"city": "Rome"}'}]
SAID = {"model": "toy", "messages": HELLO, "max_completion_tokens": 12, "seed": 5}
TOKENS = 200


def spec(name: str, instances: int, time_scale: float) -> pb.ModelSpec:
    model = pb.ModelSpec(name=name, engine="sim", gpus_per_instance=1, max_batch_size=16)
    model.min_instances = instances
    model.tool_parser = "hermes"
    model.engine_args.update({"profile": "toy", "load_time_s": 0, "time_scale": time_scale})
    return model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("openai")
    async with LocalCluster(nodes=1, gpus=3, directory=folder, http_port=0, batch_store="") as started:
        await started.apply([spec("toy", 1, 1.0), spec("slow", 2, 8.0)])
        await started.wait_ready()
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def client(cluster: LocalCluster) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{cluster.http_urls[0]}/v1", api_key="none", max_retries=0) as made:
        yield made


async def test_a_stream_tells_what_a_whole_answer_does(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(**SAID)
    pieces, usage = [], None
    async for chunk in await client.chat.completions.create(
        **SAID, stream=True, stream_options={"include_usage": True}
    ):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
        assert chunk.system_fingerprint == whole.system_fingerprint
    assert "".join(pieces) == whole.choices[0].message.content
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 12)
    assert whole.choices[0].finish_reason == "length"


async def test_the_client_that_does_not_wait_for_others_is_served_alike(
    client: AsyncOpenAI, cluster: LocalCluster
) -> None:
    def ask() -> tuple[str | None, str]:
        with OpenAI(base_url=f"{cluster.http_urls[0]}/v1", api_key="none") as blocking:
            whole = blocking.chat.completions.create(**SAID)
            with blocking.chat.completions.create(**SAID, stream=True) as stream:
                return whole.choices[0].message.content, "".join(
                    chunk.choices[0].delta.content or "" for chunk in stream
                )

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed == (await client.chat.completions.create(**SAID)).choices[0].message.content


async def test_choice_i_is_what_the_seed_after_i_others_gives(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "toy", "prompt": "the sea", "max_tokens": 8}
    several = await client.completions.create(**asked, n=3, seed=11)
    single = [await client.completions.create(**asked, seed=11 + i) for i in range(3)]
    assert [choice.text for choice in several.choices] == [one.choices[0].text for one in single]
    assert len({choice.text for choice in several.choices}) > 1
    equal = await client.completions.create(**asked, n=2, temperature=0)
    assert equal.choices[0].text == equal.choices[1].text


async def test_the_texts_of_tokens_make_up_the_text(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(**SAID, logprobs=True, top_logprobs=2)
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(each.token for each in logprobs.content) == chat.choices[0].message.content
    assert [len(each.top_logprobs) for each in logprobs.content] == [2] * 12
    text = await client.completions.create(model="toy", prompt="the sea", max_tokens=6, logprobs=0)
    [choice] = text.choices
    assert choice.logprobs is not None
    assert "".join(choice.logprobs.tokens or ()) == choice.text
    assert len(choice.logprobs.token_logprobs or ()) == 6


async def test_prompts_may_be_token_ids(client: AsyncOpenAI) -> None:
    text = await client.completions.create(model="toy", prompt=[[10, 11, 12], [13, 14]], max_tokens=3)
    assert [choice.index for choice in text.choices] == [0, 1]
    assert text.usage is not None
    assert (text.usage.prompt_tokens, text.usage.completion_tokens) == (5, 6)


async def test_a_json_object_is_one(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="toy", messages=HELLO, response_format={"type": "json_object"}
    )
    assert isinstance(json.loads(chat.choices[0].message.content or ""), dict)


async def test_tools_are_called_whole_and_streamed(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "toy", "messages": CALL, "tools": [WEATHER]}
    whole = (await client.chat.completions.create(**asked)).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert (whole.message.content or "").strip() == "I look."
    [call] = whole.message.tool_calls or ()
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    async with client.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    assert streamed.finish_reason == "tool_calls"
    [again] = streamed.message.tool_calls or ()
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    assert again.id


async def test_a_tool_that_must_be_called_is(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="toy",
        messages=HELLO,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
    )
    [call] = chat.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert "city" in json.loads(call.function.arguments)
    answered = [
        *HELLO,
        chat.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    again = await client.chat.completions.create(
        model="toy", messages=answered, tools=[WEATHER], max_tokens=4
    )
    assert again.usage is not None
    assert again.usage.completion_tokens == 4


async def test_a_line_of_a_batch_is_answered_as_a_request_is(client: AsyncOpenAI) -> None:
    tools = {"model": "toy", "messages": CALL, "tools": [WEATHER], "seed": 5, "max_tokens": 80}
    asked = {"said": SAID, "called": tools, "long": {**SAID, "max_completion_tokens": 10_000_000}}
    batch = await created(
        client, jsonl(*(line(name, **{"max_tokens": None, **body}) for name, body in asked.items()))
    )
    done = await once(client, batch.id, within_s=30)
    assert done.status == "completed"
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (2, 1)
    found = await read(client, done.output_file_id)
    for name in ("said", "called"):
        online = (await client.chat.completions.create(**asked[name])).model_dump(exclude_none=True)
        offline = ChatCompletion.model_validate(found[name]["response"]["body"]).model_dump(exclude_none=True)
        # A line has no tier of its own: it is a batch's.
        assert online.pop("service_tier") == "default"
        for each in (online, offline):
            each.pop("id"), each.pop("created"), each["usage"].pop("prompt_tokens_details")
            for call in each["choices"][0]["message"].get("tool_calls", ()):
                call.pop("id")
        assert offline == online
    assert found["called"]["response"]["body"]["choices"][0]["finish_reason"] == "tool_calls"
    error = (await read(client, done.error_file_id))["long"]["response"]
    assert (error["status_code"], error["body"]["error"]["type"]) == (400, "invalid_request_error")


async def test_what_is_over_the_context_is_a_bad_request(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="toy", messages=HELLO, max_tokens=10_000_000)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "context_length_exceeded")
    assert "context" in caught.value.message
    long: list[Any] = [{"role": "user", "content": "sea " * 200_000}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="toy", messages=long)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


async def test_a_killed_worker_is_not_noticed_by_who_reads_a_stream(
    client: AsyncOpenAI, cluster: LocalCluster
) -> None:
    asked: dict[str, Any] = {"prompt": "the sea", "temperature": 0, "max_tokens": TOKENS}
    asked["extra_body"] = {"ignore_eos": True}
    undisturbed = (await client.completions.create(model="slow", **asked)).choices[0].text

    async def read() -> tuple[str, int]:
        text, tokens = "", 0
        counted = {"include_usage": True, "include_obfuscation": False}
        async for chunk in await client.completions.create(
            model="slow", **asked, stream=True, stream_options=counted
        ):
            text += "".join(choice.text for choice in chunk.choices)
            tokens += chunk.usage.completion_tokens if chunk.usage else 0
        return text, tokens

    streams = [asyncio.create_task(read()) for _ in range(4)]

    def busiest(seen: pb.ClusterSnapshot) -> str:
        running = {
            one.instance_id: one.load.running.interactive for one in seen.instances if one.model == "slow"
        }
        return max(running, key=running.__getitem__) if max(running.values(), default=0) > 1 else ""

    seen = await cluster.wait_for(busiest)
    [victim] = [worker for worker in cluster.workers() if worker.instance_id == busiest(seen)]
    assert not any(stream.done() for stream in streams)
    victim.kill()
    assert await asyncio.gather(*streams) == [(undisturbed, TOKENS)] * 4
