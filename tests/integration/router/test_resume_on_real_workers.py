"""Streams cut after each of their tokens, on real worker processes: the reader cannot tell."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from typing import Any

import pytest

from chiron.client import CannotResume, Client, OneOf, Slo, ToolCall
from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.v1 import types_pb2
from tests.support.cutting_worker import Cuts, CuttingWorker
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, worker_process

TOKENS = 24
LONG = 1200
SIM = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 8,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.2},
    "toolParser": "hermes",
}
GREEDY: dict[str, Any] = {"model": "m", "prompt": "Tell me about the sea.", "temperature": 0.0}
PLAIN = {**GREEDY, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": 2}
MODES = pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])


@pytest.fixture
async def cuts() -> Cuts:
    return Cuts()


@pytest.fixture
async def workers(tmp_path_factory, stack: AsyncExitStack) -> list[WorkerProcess]:
    started = [
        await stack.enter_async_context(
            worker_process(tmp_path_factory.mktemp(name), SIM, instance_id=name, spec_version=1)
        )
        for name in ("a", "b")
    ]
    for worker in started:
        await worker.until()
    return started


@pytest.fixture
async def router(workers, cuts, stack, start_router, controller):
    """A router before the two workers, each behind a door that cuts."""
    controller.add("m", spec_version=1, tool_parser="hermes")
    for name, worker in zip(("a", "b"), workers, strict=True):
        door = await stack.enter_async_context(CuttingWorker(worker.address, cuts))
        controller.table.instances.append(
            control_pb2.RoutedInstance(
                instance_id=name,
                incarnation=7,
                model="m",
                address=door.address,
                role=types_pb2.ROLE_MIXED,
                state=types_pb2.INSTANCE_STATE_READY,
                spec_version=1,
            )
        )
    router = await start_router(retry_pause_s=0.05)
    await eventually(lambda: all(one.usable for one in router.core._instances.values()))
    return router


async def read(client: Client, **options: Any) -> tuple[Any, ...]:
    """A stream put together from its chunks, which must follow on each other; its usage comes last."""
    text, tokens, ends, logprobs = "", [], [], []
    async for chunk in client.generate(**options):
        assert chunk.first_token_index == len(tokens)
        text += chunk.text
        tokens += chunk.token_ids
        ends += chunk.text_ends
        logprobs += chunk.logprobs
        last = chunk
    assert len(ends) == len(tokens) == last.usage.completion_tokens
    assert not ends or ends[-1] <= len(text)
    return text, tokens, ends, logprobs, last.finish_reason, last.stop_match, last.usage


async def cut_everywhere(client: Client, cuts: Cuts, **options: Any) -> int:
    """Cuts the stream after each of its tokens, the last one included; returns how many it has."""
    whole = await read(client, **options)
    length = len(whole[1])
    for at in range(1, length + 1):
        cuts.at = [at]
        found = await read(client, **options)
        assert not cuts.at, f"the stream was cut after {at} tokens"
        # The prompt is in the cache by now, whoever began.
        assert found[:-1] == whole[:-1]
        assert found[-1].prompt_tokens == whole[-1].prompt_tokens
        assert found[-1].completion_tokens == whole[-1].completion_tokens
    return length


@MODES
async def test_a_cut_after_every_token_changes_nothing(router, cuts, lookaside) -> None:
    async with Client(router.address, lookaside=lookaside) as client:
        assert await cut_everywhere(client, cuts, **PLAIN) == TOKENS
        assert client.stats.failed == 0
        # Through the router it is the router that resumes.
        assert client.stats.resumes == (TOKENS - 1 if lookaside else 0)
    assert [len(each.delivered_token_ids) for each in cuts.resumes] == list(range(1, TOKENS))
    assert {each.origin.spec_version for each in cuts.resumes} == {1}


@MODES
async def test_cuts_around_a_stop_string_and_within_characters_change_nothing(
    router, cuts, lookaside
) -> None:
    async with Client(router.address, lookaside=lookaside) as client:
        text, _, ends, *_ = await read(client, **PLAIN)
        stop = text[ends[10] - 2 : ends[13] + 2]
        for include in (False, True):
            options = {**PLAIN, "stop": ["never there", stop], "include_stop": include}
            assert 0 < await cut_everywhere(client, cuts, **options) < TOKENS
        script = {**GREEDY, "max_tokens": 64, "structured_output": OneOf(["🚀é漢 and so on 🚀🚀"])}
        assert await cut_everywhere(client, cuts, **script) > 12
        assert client.stats.failed == 0


@MODES
async def test_several_cuts_of_one_stream_change_nothing(router, cuts, lookaside) -> None:
    async with Client(router.address, lookaside=lookaside) as client:
        whole = await read(client, **PLAIN)
        cuts.at = [3, 4, 4, 11, 23]
        assert (await read(client, **PLAIN))[:-1] == whole[:-1]
    assert cuts.attempts == [0, 0, 1, 2, 3, 4, 5]


async def test_a_refusal_to_resume_reaches_the_reader_through_the_router(router, cuts) -> None:
    async with Client(router.address, lookaside=False) as client:
        cuts.at = [5]
        with pytest.raises(CannotResume, match="several choices"):
            async for _ in client.generate(**{**PLAIN, "n": 2, "temperature": 1.0}):
                pass


@pytest.mark.parametrize(("lookaside", "at"), [(True, 1), (True, 300), (False, 40)])
async def test_a_killed_worker_changes_nothing(router, workers, lookaside, at) -> None:
    options = {**PLAIN, "max_tokens": LONG, "logprobs": None}
    async with Client(router.address, lookaside=lookaside) as client:
        whole = await read(client, **options)
        text, tokens = "", 0
        async for chunk in client.generate(**options, request_id="victim"):
            text += chunk.text
            tokens += len(chunk.token_ids)
            if at and tokens >= at:
                at = 0
                (victim,) = [
                    worker
                    for worker in workers
                    if (await worker.load_when(lambda _: True)).started_request_ids == ["victim"]
                ]
                victim.process.send_signal(signal.SIGKILL)
        assert (text, tokens) == (whole[0], LONG)
        assert client.stats.failed == 0


ASKED = 'say Now 🚀:\ncall weather {"city": "Zürich", "days": 2}\ncall time {"zone": null}'
CALLING: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": ASKED}],
    "tools": [{"type": "function", "function": {"name": name}} for name in ("weather", "time")],
    "tool_choice": "auto",
}


async def calls_in(client: Client, **options: Any) -> tuple[str, list[ToolCall], Any]:
    """Content, calls and finish reason, put together from the chunks; a call's id and name come once."""
    content, calls = "", dict[int, list[str]]()
    async for chunk in client.generate(**{**CALLING, **options}):
        assert chunk.parsed is not None or chunk.finish_reason is None
        if chunk.parsed is not None:
            content += chunk.parsed.content
            for piece in chunk.parsed.tool_calls:
                assert (piece.index in calls) is (piece.id == piece.name == "")
                call = calls.setdefault(piece.index, [piece.id, piece.name, ""])
                call[2] += piece.arguments
        last = chunk
    return content, [ToolCall(*calls[index]) for index in range(len(calls))], last.finish_reason


@MODES
async def test_cuts_within_calls_lose_and_double_nothing(router, cuts, lookaside) -> None:
    async with Client(router.address, lookaside=lookaside) as client:
        whole = await calls_in(client, request_id="first")
        content, calls, _ = whole
        assert content == "Now 🚀:\n"
        assert [(call.name, call.arguments) for call in calls] == [
            ("weather", '{"city": "Zürich", "days": 2}'),
            ("time", '{"zone": null}'),
        ]
        length = len((await client.complete(**CALLING)).token_ids)
        for at in range(1, length, 7):
            cuts.at = [at]
            assert await calls_in(client, request_id="first") == whole
            assert not cuts.at, f"the stream was cut after {at} tokens"
        other = (await client.complete(**CALLING, request_id="second")).choices[0].parsed
        assert [call.arguments for call in other.tool_calls] == [call.arguments for call in calls]
        assert not {call.id for call in other.tool_calls} & {call.id for call in calls}


@MODES
async def test_a_worker_killed_in_the_middle_of_a_call_changes_nothing(router, workers, lookaside) -> None:
    said = "call note " + json.dumps({"text": "the sea, " * 300})
    options = {"messages": [{"role": "user", "content": said}], "request_id": "victim"}
    async with Client(router.address, lookaside=lookaside) as client:
        arguments, killed = "", False
        async for chunk in client.generate(**{**CALLING, **options}):
            for piece in chunk.parsed.tool_calls if chunk.parsed is not None else ():
                assert piece.index == 0
                arguments += piece.arguments
            if len(arguments) > 100 and not killed:
                killed = True
                (victim,) = [
                    worker
                    for worker in workers
                    if (await worker.load_when(lambda _: True)).started_request_ids == ["victim"]
                ]
                victim.process.send_signal(signal.SIGKILL)
                assert len(arguments) < 1000, "it has much left to say"
        assert killed
        assert f"call note {arguments}" == said
        assert client.stats.failed == 0


async def test_a_drain_that_runs_out_of_time_hands_its_streams_over(router, workers) -> None:
    options = {**PLAIN, "max_tokens": LONG, "logprobs": None}
    async with Client(router.address) as direct, Client(router.address, lookaside=False) as proxied:
        whole = await read(direct, **options)
        streams = [
            asyncio.create_task(read(client, **options)) for client in (direct, proxied) for _ in range(4)
        ]
        await workers[0].load_when(lambda load: load.running.interactive >= 3)
        await workers[0].control.Drain(worker_pb2.DrainRequest(timeout_s=0.01))
        for stream in await asyncio.gather(*streams):
            assert stream[:-1] == whole[:-1]
        assert direct.stats.resumed > 0
        assert direct.stats.failed == proxied.stats.failed == 0


@MODES
async def test_a_stream_that_went_on_elsewhere_counts_once_towards_its_slo(
    router, cuts, workers, lookaside
) -> None:
    async with Client(router.address, lookaside=lookaside) as client:
        for slo in (Slo(ttft_ms=60_000, itl_ms=60_000), Slo(ttft_ms=1e-6)):
            cuts.at = [5]
            # Long enough that its first worker has not finished it by the time the cut is seen.
            await read(client, **{**PLAIN, "max_tokens": 400}, slo=slo)
            assert not cuts.at, "the stream was cut"

    async def told() -> list[int]:
        counts = [0, 0, 0, 0]
        for worker in workers:
            sums = (await worker.until()).load.finished_interactive
            mine = (sums.with_slo, sums.slo_met, sums.slo_failed, sums.slo_left)
            counts = [a + b for a, b in zip(counts, mine, strict=True)]
        return counts

    for worker in workers:
        await worker.idle()
    assert await told() == [2, 1, 0, 0]
