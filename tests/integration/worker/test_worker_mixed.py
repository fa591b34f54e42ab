"""Batch work gives way to interactive work in one worker, counted in the steps of its engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from chiron.internal.v1 import worker_pb2 as wpb
from chiron.rpc.errors import handed_back_after, reason_of
from chiron.v1 import cluster_pb2, types_pb2
from chiron.v1 import inference_pb2 as pb
from services.worker import reports
from tests.support.wait import eventually
from tests.support.worker_here import WorkerHere, worker_here
from tests.support.worker_process import WorkerProcess, failure, request, worker_process

BATCH = types_pb2.REQUEST_CLASS_BATCH
SLOTS = 3
ENGINE = {"load_time_s": 0, "time_scale": 4.0}
SPEC: dict[str, Any] = {"name": "toy", "engine": "sim", "maxBatchSize": SLOTS, "engineArgs": ENGINE}
QUICK = {**SPEC, "maxBatchSize": 1, "engineArgs": {"load_time_s": 0}}
BLOCK = 16
PROGRESS = {"preemption.min_progress_tokens": 4}
TALE, QUESTION = range(1000, 1100), range(2000, 2210)
"""Prompts of seven and of fourteen blocks."""


async def load_of(worker: WorkerProcess) -> cluster_pb2.InstanceLoad:
    async for statistics in worker.control.WatchStatistics(wpb.WatchStatisticsRequest()):
        return statistics.load
    raise AssertionError("the statistics ended")


class Stream:
    """A call that is read all the time."""

    def __init__(self, worker: WorkerProcess | WorkerHere, message: pb.GenerateRequest) -> None:
        self.tokens: list[int] = []
        self.end: pb.OutputDelta | None = None
        self.call = worker.inference.Generate(message)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> list[int]:
        async for response in self.call:
            for delta in response.deltas:
                assert delta.choice or delta.first_token_index <= len(self.tokens)
                self.tokens += delta.token_ids
                self.end = delta
        return self.tokens


def tale(name: str, *, tokens: int, **fields: Any) -> pb.GenerateRequest:
    """A batch request whose text depends on its name."""
    prompt = pb.TokenIds(ids=[*name.encode(), *TALE])
    sampling = {"max_tokens": tokens, **fields.pop("sampling", {})}
    return request(prompt_token_ids=prompt, request_id=name, request_class=BATCH, sampling=sampling, **fields)


def question(name: str, *, tokens: int, **sampling: Any) -> pb.GenerateRequest:
    ids = pb.TokenIds(ids=[*name.encode(), *QUESTION])
    return request(prompt_token_ids=ids, request_id=name, sampling={"max_tokens": tokens, **sampling})


# What fills the worker: all its slots, or all but a few blocks of its KV cache while slots are free.
SHORT_OF = {
    "slots": SPEC,
    "kv": {**SPEC, "maxBatchSize": 16, "engineArgs": {**ENGINE, "kv_capacity_tokens": 34 * BLOCK}},
}


@pytest.mark.parametrize("scarce", SHORT_OF)
async def test_an_interactive_request_waits_two_steps_at_most_for_batch_work(
    tmp_path: Path, scarce: str
) -> None:
    names = [f"b{index}" for index in range(SLOTS)]
    async with worker_here(tmp_path, SHORT_OF[scarce], min_progress_tokens=4) as here:
        await Stream(here, question("x", tokens=2)).task
        streams = [Stream(here, tale(name, tokens=60)) for name in names]
        await eventually(lambda: all(len(stream.tokens) >= 6 for stream in streams))
        await Stream(here, question("y", tokens=2)).task
        assert not any(stream.task.done() for stream in streams), "batch work was under way"
        taken = here.steps_to_first_token
        assert taken["y"] <= taken["x"] + 2
        disturbed = await asyncio.gather(*(stream.task for stream in streams))
        alone = await asyncio.gather(*(Stream(here, tale(name, tokens=60)).task for name in names))
        assert disturbed == alone
        ends = [stream.end for stream in streams]
        assert sum(end.timing.preemptions for end in ends if end is not None) == 1
        load = reports.Statistics(here.worker).take().load
        assert load.preempted_for_interactive == 1
        # Prompt and some tokens: all of it is computed again.
        assert 100 < load.preempted_tokens < 200


async def test_a_burst_takes_as_many_slots_as_it_needs_and_no_more(tmp_path: Path) -> None:
    async with worker_here(tmp_path, {**SPEC, "maxBatchSize": 5}, min_progress_tokens=4) as here:
        await Stream(here, question("x", tokens=2)).task
        streams = [Stream(here, tale(f"b{index}", tokens=60)) for index in range(5)]
        await eventually(lambda: all(len(stream.tokens) >= 6 for stream in streams))
        burst = [Stream(here, question(f"y{index}", tokens=20)) for index in range(3)]
        await asyncio.gather(*(stream.task for stream in burst))
        taken = here.steps_to_first_token
        assert max(taken[f"y{index}"] for index in range(3)) <= taken["x"] + 2
        assert here.worker.mixed.preempted == 3
        assert [len(await stream.task) for stream in streams] == [60] * 5
        assert here.worker.mixed.preempted == 3


async def test_nobody_is_preempted_beyond_the_bound(tmp_path: Path) -> None:
    # Batch work takes no place from an interactive request, not even where nobody may wait.
    settings = {"preemption.min_progress_tokens": 2, "preemption.max_preemptions": 2, "max_waiting": 0}
    async with worker_process(tmp_path, QUICK, **settings) as worker:
        await worker.until()
        alone = await Stream(worker, tale("b", tokens=400)).task
        stream = Stream(worker, tale("b", tokens=400))
        asked = 0
        while not stream.task.done():
            seen = len(stream.tokens)
            await eventually(lambda seen=seen: len(stream.tokens) >= seen + 8 or stream.task.done())
            await Stream(worker, question(f"q{asked}", tokens=2)).task
            asked += 1
        assert asked == 3, "the third one waited for its end"
        assert await stream.task == alone
        assert stream.end is not None
        assert stream.end.timing.preemptions == 2
        assert (await load_of(worker)).preempted_for_interactive == 2


@pytest.mark.parametrize("gives_way", [True, False])
async def test_batch_work_finds_a_place_in_what_is_left_and_takes_none_where_it_gives_way(
    tmp_path: Path, gives_way: bool
) -> None:
    # One slot and two that may wait; nobody has come so far that it is preempted.
    settings = {
        "preemption.min_progress_tokens": 10_000,
        "preemption.hand_back_s": 600,
        "preemption.enabled": str(gives_way).lower(),
        "max_waiting": 2,
    }
    slow = {**QUICK, "engineArgs": ENGINE}
    async with worker_process(tmp_path, slow, **settings) as worker:
        await worker.until()
        batch = Stream(worker, tale("b", tokens=2000))
        await worker.load_when(lambda load: load.running.batch == 1)
        places = 3 if gives_way else 2
        urgent = [Stream(worker, question(f"q{index}", tokens=2000)) for index in range(places)]
        await worker.load_when(lambda load: load.waiting.interactive == places)
        for late in (question("late", tokens=2), tale("later", tokens=2)):
            refused = await failure(worker.inference.Generate(late))
            assert reason_of(refused) == "RETRY_ELSEWHERE"
            assert "all slots are taken" in (refused.details() or "")
        for stream in (batch, *urgent):
            stream.call.cancel()
            await asyncio.gather(stream.task, return_exceptions=True)
        await worker.idle()


async def test_nobody_gives_way_where_that_is_off(tmp_path: Path) -> None:
    async with worker_here(tmp_path, {**SPEC, "maxBatchSize": 1}, enabled=False) as here:
        batch = Stream(here, tale("b", tokens=40))
        await eventually(lambda: len(batch.tokens) >= 20)
        urgent = Stream(here, question("i", tokens=2))
        await eventually(lambda: here.worker.occupancy().waiting.interactive == 1)
        with here.worker.load_board.subscribe([]) as subscriber:
            load = reports.load_response(here.worker, subscriber)
        assert (load.running.batch, load.yielding) == (1, 0)
        await asyncio.gather(batch.task, urgent.task)
        assert here.worker.mixed.preempted == 0
        assert batch.end is not None
        assert batch.end.timing.preemptions == 0


async def test_what_waits_too_long_is_handed_back_and_what_cannot_go_on_elsewhere_stays(
    tmp_path: Path,
) -> None:
    settings = {**PROGRESS, "preemption.hand_back_s": 0.8}
    async with worker_process(tmp_path, {**QUICK, "maxBatchSize": 3}, **settings) as worker:
        await worker.until()
        # From now on, for it holds but for a moment.
        seen = asyncio.create_task(worker.load_when(lambda load: load.waiting.batch == 4))
        pair = Stream(worker, tale("pair", tokens=300, sampling={"n": 2, "temperature": 1.0}))
        whole = Stream(worker, tale("whole", tokens=3000))
        await eventually(lambda: min(len(whole.tokens), len(pair.tokens) // 2) > 20)
        both = Stream(worker, question("both", tokens=600, n=2, temperature=1.0))
        busy = [both, Stream(worker, question("one", tokens=600))]
        await eventually(lambda: all(stream.tokens for stream in busy))
        late = worker.inference.Generate(tale("late", tokens=5))
        full = await seen
        assert (full.running.interactive, full.running.batch, full.batch_credits) == (3, 0, 0)
        refused = await failure(late)
        assert (reason_of(refused), handed_back_after(refused)) == ("RETRY_ELSEWHERE", 0)
        with pytest.raises(grpc.aio.AioRpcError) as interrupted:
            await whole.task
        assert reason_of(interrupted.value) == "STREAM_INTERRUPTED"
        assert handed_back_after(interrupted.value) == 1
        assert not any(stream.task.done() for stream in busy), "they had the slots all the time"
        assert len(await pair.task) == 600
        assert [len(await stream.task) for stream in busy] == [1200, 600]
        assert (await load_of(worker)).handed_back_requests == 2
