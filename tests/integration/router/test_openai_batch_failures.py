"""A request that an instance refuses is told alike online and in the error file of a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from chiron.v1 import types_pb2
from services.router.batch.settings import BatchSettings
from tests.support.http_door import ANY, openai_at
from tests.support.openai_batches import CHAT, COMPLETIONS, created, jsonl, line, once, read
from tests.support.wait import eventually


@pytest.fixture
async def client(start_router, start_real, controller, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    """A router with a queue, and a worker process."""
    worker = await start_real("a")
    controller.add("m", [])
    instance = controller.table.instances.add(
        instance_id="a", incarnation=1, model="m", address=worker.address, role=types_pb2.ROLE_MIXED
    )
    instance.state = types_pb2.INSTANCE_STATE_READY
    router = await start_router(batch=BatchSettings(store=f"sqlite:{tmp_path / 'queue.db'}"), http=ANY)
    await eventually(lambda: "a" in router.core._instances and router.core._instances["a"].usable)
    async with openai_at(router.router.http_url) as client:
        yield client


LONG = "word " * 9_000
WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "prompt": ({"messages": [{"role": "user", "content": LONG}]}, "messages", "context_length_exceeded"),
    "output": ({"max_tokens": 10**9}, "max_tokens", "context_length_exceeded"),
    "effort": ({"reasoning_effort": "low"}, "reasoning_effort", "invalid_value"),
    "variable": ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "invalid_value"),
}


async def test_a_chat_is_refused_in_the_words_of_its_endpoint(client: AsyncOpenAI) -> None:
    content = jsonl(*(line(name, **body) for name, (body, _, _) in WRONG.items()))
    batch = await once(client, (await created(client, content)).id)
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 0, "failed": 4}
    errors = await read(client, batch.error_file_id)
    for name, (body, param, code) in WRONG.items():
        with pytest.raises(openai.BadRequestError) as online:
            await client.post(CHAT.removeprefix("/v1"), body=line(name, **body)["body"], cast_to=object)
        told = errors[name]["response"]
        assert told["status_code"] == 400
        assert told["body"]["error"] == online.value.body
        assert (online.value.param, online.value.code) == (param, code)
        assert told["body"]["error"]["message"].startswith(f"{param}: ")


async def test_so_is_a_text_completion(client: AsyncOpenAI) -> None:
    content = jsonl(line("long", url=COMPLETIONS, prompt=LONG))
    batch = await once(client, (await created(client, content, endpoint=COMPLETIONS)).id)
    [told] = (await read(client, batch.error_file_id)).values()
    error = told["response"]["body"]["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert error["message"].startswith("prompt: ")
