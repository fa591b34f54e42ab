"""OpenAI's own clients, unchanged, against a cluster of one real engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic import BaseModel

from chiron.cluster import LocalCluster
from chiron.cluster.vllm_cpu import CPU_WORKER_ENV, vllm_spec
from tests.support.openai_batches import created, jsonl, line, once, read
from tests.vllm.adapters import write_adapter

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }}: {% endfor %}"
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[assistant]"
)
HELLO: list[Any] = [{"role": "user", "content": "Tell me about the sea."}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
        },
    },
}


class Mood(BaseModel):
    """What the model is asked for."""

    mood: Literal["calm", "rough"]
    waves: Literal[1, 2, 3]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(random_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncOpenAI]:
    folder = tmp_path_factory.mktemp("openai")
    spec = vllm_spec(str(random_llama), name="toy")
    spec.chat_template, spec.tool_parser = TEMPLATE, "hermes"
    spec.adapters.add(name="poet", path=str(write_adapter(folder / "poet", random_llama, rank=4)))
    spec.engine_args.update({"dtype": "float32", "block_size": 32, "max_num_batched_tokens": 512})
    settings: dict[str, Any] = {"http_port": 0, "batch_store": "", "worker_env": CPU_WORKER_ENV}
    async with LocalCluster(nodes=1, gpus=1, directory=folder / "run", **settings) as cluster:
        await cluster.apply([spec])
        await cluster.wait_ready()
        async with AsyncOpenAI(
            base_url=f"{cluster.http_urls[0]}/v1", api_key="none", max_retries=0, timeout=120
        ) as made:
            yield made


async def test_a_stream_tells_what_a_whole_answer_does(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "toy", "messages": HELLO, "max_tokens": 16, "temperature": 0}
    whole = await client.chat.completions.create(**asked)
    pieces, usage = [], None
    async for chunk in await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage is not None
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 16)


async def test_an_answer_is_parsed_into_the_caller_s_type(client: AsyncOpenAI) -> None:
    parsed = await client.chat.completions.parse(
        model="toy", messages=HELLO, response_format=Mood, max_tokens=60, seed=1
    )
    assert isinstance(parsed.choices[0].message.parsed, Mood)


async def test_the_texts_of_tokens_make_up_the_text(client: AsyncOpenAI) -> None:
    chat = await client.chat.completions.create(
        model="toy", messages=HELLO, max_tokens=12, logprobs=True, top_logprobs=3, seed=4, n=2
    )
    assert len(chat.choices) == 2
    for choice in chat.choices:
        assert choice.logprobs is not None
        content = choice.logprobs.content or []
        assert "".join(each.token for each in content) == choice.message.content
        assert all(len(each.top_logprobs) == 3 for each in content)
    text = await client.completions.create(model="toy", prompt=["sea", "sky"], max_tokens=5, logprobs=1)
    for one in text.choices:
        assert one.logprobs is not None
        assert "".join(one.logprobs.tokens or ()) == one.text


async def test_a_tool_that_must_be_called_is_called_whole_and_streamed(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "toy",
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 300,
        "temperature": 0,
    }
    whole = (await client.chat.completions.create(**asked)).choices[0]
    [call] = whole.message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    async with client.chat.completions.stream(**asked) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    [again] = streamed.message.tool_calls or ()
    assert again.function.arguments == call.function.arguments
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"


async def test_an_adapter_is_a_model_of_its_own(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "Tell me", "max_tokens": 12, "temperature": 0}
    base = await client.completions.create(model="toy", **asked)
    poet = await client.completions.create(model="toy:poet", **asked)
    assert poet.model == "toy:poet"
    assert poet.choices[0].text != base.choices[0].text
    assert "toy:poet" in [model.id async for model in client.models.list()]


async def test_a_batch_is_answered_as_requests_are(client: AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"messages": HELLO, "max_tokens": 8, "temperature": 0}
    names = {f"own-{number}" for number in range(8)}
    batch = await created(client, jsonl(*(line(name, **asked, model="toy") for name in names)))
    done = await once(client, batch.id, within_s=60)
    assert done.status == "completed"
    found = await read(client, done.output_file_id)
    online = await client.chat.completions.create(model="toy", **asked)
    assert found.keys() == names
    for one in found.values():
        [choice] = one["response"]["body"]["choices"]
        assert choice["message"]["content"] == online.choices[0].message.content
        assert choice["finish_reason"] == "length"
    poem = await created(client, jsonl(line("one", **asked, model="toy:poet")))
    output = (await once(client, poem.id, within_s=60)).output_file_id
    assert (await read(client, output))["one"]["response"]["body"]["model"] == "toy:poet"


async def test_errors_are_those_of_the_official_client(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="toy", prompt="x", max_tokens=100_000)
    assert caught.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="toy", messages=HELLO, extra_body={"structured_outputs": {"regex": "("}}
        )
    assert caught.value.param == "response_format.regex"
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="toy:critic", prompt="x")
