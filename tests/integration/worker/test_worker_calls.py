"""Tool calls at a real worker: what its answers hold, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chiron.client.parsed import ParsedParts
from chiron.v1 import inference_pb2 as pb
from tests.conformance.engine_calls import AUTO, REQUIRED, TIME, chat
from tests.support.worker_process import WorkerProcess, failure, violated_fields, worker_process

pytestmark = pytest.mark.asyncio(loop_scope="module")
ARGS = {"load_time_s": 0, "time_scale": 0.1, "max_context_tokens": 20_000, "kv_capacity_tokens": 40_000}
SPEC = {"name": "conformance", "engine": "sim", "engineArgs": ARGS}
TWO = 'say Look.\ncall time {"city": "Rome"}\ncall weather {}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerProcess]:
    async with worker_process(tmp_path_factory.mktemp("w"), {**SPEC, "toolParser": "hermes"}) as process:
        await process.until()
        yield process


async def ask(worker: WorkerProcess, request: pb.GenerateRequest) -> dict[int, tuple[str, pb.ParsedOutput]]:
    """Text and what was parsed of it, by choice."""
    texts, parts = dict[int, str](), dict[int, ParsedParts]()
    async for message in worker.inference.Generate(request):
        for delta in message.deltas:
            texts[delta.choice] = texts.get(delta.choice, "") + delta.text
            if delta.HasField("parsed"):
                parts.setdefault(delta.choice, ParsedParts()).add(delta.parsed)
    return {choice: (text, parts[choice].whole(text)) for choice, text in texts.items()}


async def test_the_text_stays_whole_beside_content_and_calls(worker: WorkerProcess) -> None:
    ((text, parsed),) = (await ask(worker, chat(AUTO, TWO))).values()
    assert text.count("<tool_call>") == 2
    assert parsed.content == "Look.\n"
    assert [(call.name, call.arguments) for call in parsed.tool_calls] == [
        ("time", '{"city": "Rome"}'),
        ("weather", "{}"),
    ]


async def test_of_calls_that_may_not_be_parallel_the_first_is_told(worker: WorkerProcess) -> None:
    ((text, parsed),) = (await ask(worker, chat(AUTO, TWO, parallel_tool_calls=False))).values()
    assert text.count("<tool_call>") == 2
    assert [call.name for call in parsed.tool_calls] == ["time"]


async def test_every_choice_is_parsed(worker: WorkerProcess) -> None:
    found = await ask(worker, chat(REQUIRED, TWO, n=3, temperature=1.0))
    assert sorted(found) == [0, 1, 2]
    assert len({call.id for _, parsed in found.values() for call in parsed.tool_calls}) == 6


async def test_without_a_choice_of_tools_nothing_is_parsed(worker: WorkerProcess) -> None:
    for choice in (pb.TOOL_CHOICE_UNSPECIFIED, pb.TOOL_CHOICE_NONE):
        async for message in worker.inference.Generate(chat(choice, TWO, max_tokens=5)):
            assert not any(delta.HasField("parsed") for delta in message.deltas)


async def test_a_long_chat_is_parsed_alike(worker: WorkerProcess) -> None:
    long: dict[str, Any] = {**TIME, "function": {**TIME["function"], "description": "sea " * 10_000}}
    ((_, parsed),) = (await ask(worker, chat(REQUIRED, tools=[long]))).values()
    assert [call.name for call in parsed.tool_calls] == ["time"]


async def test_a_worker_without_a_parser_refuses_what_is_to_be_parsed(tmp_path) -> None:
    async with worker_process(tmp_path, SPEC) as bare:
        await bare.until()
        error = await failure(bare.inference.Generate(chat(AUTO, TWO)))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert violated_fields(error) == ["chat.tools"]
        assert "no parser" in (error.details() or "")
