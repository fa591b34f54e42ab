"""Batch work gives way to interactive work in a worker with a real engine, counted in its steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio

from chiron.rpc.errors import handed_back_after, reason_of
from chiron.testing.models import random_llama
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from tests.support.wait import eventually
from tests.support.worker_here import WorkerHere, worker_here
from tests.support.worker_process import failure, request

pytestmark = pytest.mark.asyncio(loop_scope="module")

BATCH = types_pb2.REQUEST_CLASS_BATCH
SLOTS = 4
BLOCK = 32
_TRIES = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerHere]:
    folder = tmp_path_factory.mktemp("worker")
    # Its steps take long against the turns of this process, in which other processes may hold it up.
    weights = random_llama(folder / "model", hidden_size=512, layers=8)
    spec = {
        "name": "toy",
        "engine": "vllm",
        "weights": str(weights),
        "maxBatchSize": SLOTS,
        "engineArgs": {
            "dtype": "float32",
            "enforce_eager": True,
            "block_size": BLOCK,
            "max_num_batched_tokens": 512,
            # 32 blocks: four tales leave too few of them for a question.
            "num_gpu_blocks_override": 33,
            "max_model_len": 512,
        },
    }
    settings = {"min_progress_tokens": 4, "hand_back_s": 2.0}
    async with worker_here(folder, spec, within_s=120.0, **settings) as found:
        yield found


class Stream:
    """A call that is read all the time."""

    def __init__(self, here: WorkerHere, message: pb.GenerateRequest, *, begins_at: int = 0) -> None:
        self.tokens: list[int] = []
        self.end: pb.OutputDelta | None = None
        self._text_length = 0
        self._begins_at = begins_at
        self.call = here.inference.Generate(message)
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> list[int]:
        async for response in self.call:
            for delta in response.deltas:
                assert delta.first_token_index == self._begins_at + len(self.tokens)
                self.tokens += delta.token_ids
                self._text_length += len(delta.text)
                self.end = delta
        return self.tokens

    def state(self) -> pb.ResumeState:
        """What another attempt needs after one preemption."""
        return pb.ResumeState(
            delivered_token_ids=self.tokens,
            delivered_text_length=self._text_length,
            origin=pb.StreamOrigin(preemptions=1),
        )


def ask(name: str, *, words: int, tokens: int, **fields: Any) -> pb.GenerateRequest:
    prompt = pb.TokenIds(ids=[3 + ord(letter) % 200 for letter in name] + [5 + i % 200 for i in range(words)])
    return request(prompt_token_ids=prompt, request_id=name, sampling={"max_tokens": tokens}, **fields)


async def full_of_batch_work(here: WorkerHere, names: list[str], words: int, tokens: int) -> list[Stream]:
    streams = [Stream(here, ask(name, words=words, tokens=tokens, request_class=BATCH)) for name in names]
    await eventually(lambda: all(len(stream.tokens) >= 6 for stream in streams))
    return streams


@pytest.mark.parametrize(("scarce", "slots"), [("slots", SLOTS), ("kv", SLOTS - 1)])
async def test_an_interactive_request_waits_two_steps_at_most_for_batch_work(
    here: WorkerHere, scarce: str, slots: int
) -> None:
    # Three of 300 tokens hold 30 blocks of 32; four of 60 hold 8.
    words, question = (60, 60) if scarce == "slots" else (250, 210)
    names = [f"{scarce}{index}" for index in range(slots)]
    alone = await asyncio.gather(
        *(Stream(here, ask(name, words=words, tokens=40, request_class=BATCH)).task for name in names)
    )
    before, taken = here.worker.mixed.preempted, []
    for index in range(_TRIES):
        await Stream(here, ask(f"{scarce}-empty-{index}", words=question, tokens=2)).task
        streams = await full_of_batch_work(here, names, words, 40)
        await Stream(here, ask(f"{scarce}-busy-{index}", words=question, tokens=2)).task
        assert not any(stream.task.done() for stream in streams), "batch work was under way"
        assert await asyncio.gather(*(stream.task for stream in streams)) == alone
        assert here.worker.mixed.preempted == before + index + 1
        busy, empty = (here.steps_to_first_token[f"{scarce}-{kind}-{index}"] for kind in ("busy", "empty"))
        taken.append(busy - empty)
    assert max(taken) <= 2, taken


async def test_a_change_of_role_under_load_loses_nothing(here: WorkerHere) -> None:
    worker, length = here.worker, 120
    names = [f"role{index}" for index in range(SLOTS)]
    work = [ask(name, words=60, tokens=length, request_class=BATCH) for name in names]
    alone = await asyncio.gather(*(Stream(here, message).task for message in work))
    batch = await full_of_batch_work(here, names, 60, length)
    urgent = Stream(here, ask("urgent", words=60, tokens=200))
    await eventually(lambda: len(urgent.tokens) > 2)
    worker.set_role(types_pb2.ROLE_INTERACTIVE)
    # What waits is handed back at once, what runs goes on, and so does the other class.
    ends = await asyncio.gather(*(stream.task for stream in batch), return_exceptions=True)
    back = [index for index, end in enumerate(ends) if isinstance(end, grpc.aio.AioRpcError)]
    assert len(back) == 1
    assert reason_of(ends[back[0]]) == "STREAM_INTERRUPTED"
    assert handed_back_after(ends[back[0]]) == 1
    assert reason_of(await failure(here.inference.Generate(work[0]))) == "RETRY_ELSEWHERE"
    worker.set_role(types_pb2.ROLE_BATCH)
    assert reason_of(await failure(here.inference.Generate(request("Now?")))) == "RETRY_ELSEWHERE"
    [index] = back
    whole = pb.GenerateRequest(request_id="again", resume=batch[index].state())
    rest = Stream(here, merged(work[index], whole), begins_at=len(batch[index].tokens))
    ends[index] = batch[index].tokens + await rest.task
    assert list(ends) == list(alone)
    assert rest.end is not None
    assert rest.end.timing.preemptions == 1
    assert len(await urgent.task) == 200, "an interactive request ends on a batch instance"
    worker.set_role(types_pb2.ROLE_MIXED)


def merged(request: pb.GenerateRequest, more: pb.GenerateRequest) -> pb.GenerateRequest:
    found = pb.GenerateRequest()
    found.CopyFrom(request)
    found.MergeFrom(more)
    return found
