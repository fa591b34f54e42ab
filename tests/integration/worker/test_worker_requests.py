"""A real worker serves requests over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from chiron.internal.v1 import worker_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from tests.support.wait import eventually
from tests.support.worker_process import (
    WorkerProcess,
    failure,
    read_all,
    request,
    slots,
    ticket,
    worker_process,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPEC = {
    "name": "toy",
    "engine": "sim",
    "maxBatchSize": 2,
    "engineArgs": {"load_time_s": 0},
    "adapters": [{"name": "french", "path": "/nowhere"}],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[WorkerProcess]:
    async with worker_process(tmp_path_factory.mktemp("w"), SPEC, max_waiting=3) as process:
        await process.until()
        yield process


@pytest.fixture
def long() -> pb.GenerateRequest:
    return request(sampling={"max_tokens": 4000})


async def test_tokens_stream_with_offsets_usage_and_timing(worker: WorkerProcess) -> None:
    deltas = await read_all(worker.inference.Generate(request(request_class=types_pb2.REQUEST_CLASS_BATCH)))
    assert [delta.first_token_index for delta in deltas] == [
        sum(len(before.token_ids) for before in deltas[:index]) for index in range(len(deltas))
    ]
    assert deltas[-1].text_ends[-1] == len("".join(delta.text for delta in deltas))
    last = deltas[-1]
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (6, 8)
    assert 0 < last.timing.itl_mean_ms <= last.timing.itl_max_ms
    assert 0 < last.timing.ttft_ms < last.timing.total_ms
    assert last.timing.instance_id == "toy-000001"
    assert not any(delta.HasField("usage") for delta in deltas[:-1])


async def test_time_spent_before_the_worker_counts_towards_the_first_token(worker: WorkerProcess) -> None:
    deltas = await read_all(worker.inference.Generate(request(elapsed_ms=60_000.0)))
    assert deltas[-1].timing.ttft_ms > 60_000 > deltas[-1].timing.total_ms


async def test_all_choices_end_and_the_last_delta_holds_the_usage_of_all(worker: WorkerProcess) -> None:
    sampling = {"n": 2, "temperature": 1.0, "max_tokens": 5}
    deltas = await read_all(worker.inference.Generate(request(sampling=sampling)))
    assert sorted(delta.choice for delta in deltas if delta.finish_reason) == [0, 1]
    assert deltas[-1].usage.completion_tokens == 10


async def test_max_tokens_defaults_to_what_the_context_holds(worker: WorkerProcess) -> None:
    asked = request(sampling={"max_tokens": 4000, "ignore_eos": False})
    asked.sampling.ClearField("max_tokens")
    deltas = await read_all(worker.inference.Generate(asked))
    assert deltas[-1].finish_reason == pb.FINISH_REASON_STOP


async def test_chat_and_an_adapter_are_served(worker: WorkerProcess) -> None:
    chat = pb.ChatInput(messages=[pb.ChatMessage(role="user", content="Hello")])
    base = await read_all(worker.inference.Generate(request(chat=chat)))
    adapted = await read_all(worker.inference.Generate(request(chat=chat, adapter="french")))
    assert "".join(d.text for d in base) != "".join(d.text for d in adapted)


async def test_a_cancelled_call_frees_the_slot(worker: WorkerProcess, long: pb.GenerateRequest) -> None:
    call = worker.inference.Generate(long)
    await call.read()
    await worker.load_when(lambda load: slots(load.running) == 1)
    call.cancel()
    await worker.idle()
    assert "Traceback" not in worker.log


async def test_a_passed_deadline_frees_the_slot(worker: WorkerProcess, long: pb.GenerateRequest) -> None:
    error = await failure(worker.inference.Generate(long, timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await worker.idle()


async def test_watch_load_names_started_and_finished_requests(worker: WorkerProcess) -> None:
    watch = worker.network.WatchLoad(worker_pb2.WatchLoadRequest(subscriber="router"))
    first = await watch.read()
    assert (first.instance_id, first.incarnation, first.batch_size) == ("toy-000001", 7, 2)
    assert (first.role, first.state) == (types_pb2.ROLE_MIXED, types_pb2.INSTANCE_STATE_READY)
    assert first.kv_free_tokens > 0
    await read_all(worker.inference.Generate(request(request_id="watched")))
    started, finished = [], []
    while "watched" not in finished:
        load = await watch.read()
        started += load.started_request_ids
        finished += load.finished_request_ids
    assert started == finished == ["watched"]
    watch.cancel()


async def test_load_counts_running_and_waiting_by_class(worker: WorkerProcess) -> None:
    def ask(name: str, kind: types_pb2.RequestClass.ValueType) -> pb.GenerateRequest:
        return request(request_id=name, request_class=kind, sampling={"max_tokens": 4000})

    calls = [worker.inference.Generate(ask(f"batch-{i}", types_pb2.REQUEST_CLASS_BATCH)) for i in range(2)]
    for call in calls:
        await call.read()
    calls.append(worker.inference.Generate(ask("urgent", types_pb2.REQUEST_CLASS_INTERACTIVE)))
    calls.append(worker.inference.Generate(ask("batch-2", types_pb2.REQUEST_CLASS_BATCH)))
    load = await worker.load_when(lambda load: slots(load.waiting) == 2)
    assert (load.running.interactive, load.running.batch) == (0, 2)
    assert (load.waiting.interactive, load.waiting.batch) == (1, 1)
    assert set(load.started_request_ids) <= {"batch-0", "batch-1", "batch-2", "urgent"}
    for call in calls:
        call.cancel()
    await worker.idle()


async def test_too_many_waiting_requests_are_sent_elsewhere(
    worker: WorkerProcess, long: pb.GenerateRequest
) -> None:
    calls = [worker.inference.Generate(long) for _ in range(5)]
    await worker.load_when(lambda load: slots(load.waiting) == 3)
    error = await failure(worker.inference.Generate(long))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "RETRY_ELSEWHERE")
    assert "3 or more requests wait" in (error.details() or "")
    for call in calls:
        call.cancel()
    await worker.idle()


async def test_a_live_request_id_is_refused_unless_the_attempt_is_newer(
    worker: WorkerProcess, long: pb.GenerateRequest
) -> None:
    long.request_id, long.attempt = "same", 3
    first = worker.inference.Generate(long)
    await first.read()
    for attempt in (2, 3):
        error = await failure(worker.inference.Generate(request(request_id="same", attempt=attempt)))
        assert reason_of(error) == "DUPLICATE_REQUEST"
    newer = await read_all(worker.inference.Generate(request(request_id="same", attempt=4)))
    assert newer[-1].finish_reason == pb.FINISH_REASON_LENGTH
    superseded = await failure(first)
    assert (superseded.code(), reason_of(superseded)) == (grpc.StatusCode.ABORTED, "ABORTED")
    await worker.idle()


async def test_a_slow_reader_delays_nobody(worker: WorkerProcess) -> None:
    # With their logprobs, these tokens are more than such a connection takes in while nobody reads.
    narrow = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(worker.address, options=narrow) as channel:
        slow = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
            request(sampling={"max_tokens": 1000, "logprobs": 20})
        )
        await slow.read()
        quick = await read_all(worker.inference.Generate(request("Quick, please.")))
        assert quick[-1].finish_reason == pb.FINISH_REASON_LENGTH

        async def slots_are_free() -> bool:
            return slots((await worker.load_when(lambda _: True)).running) == 0

        await eventually(slots_are_free, what="the engine has finished although nobody reads")
        rest = await read_all(slow)
    assert rest[-1].usage.completion_tokens == 1000
    assert len(rest) < 900, "what waited for the reader was merged"


async def test_a_ticket_for_this_incarnation_is_taken(worker: WorkerProcess) -> None:
    given = ticket(elapsed_ms=9_000.0, request_class=types_pb2.REQUEST_CLASS_BATCH)
    deltas = await read_all(worker.inference.Generate(request(request_id="r", ticket=given)))
    assert deltas[-1].timing.ttft_ms > 9_000


@pytest.mark.parametrize("other", [{"incarnation": 6}, {"instance_id": "toy-000002"}])
async def test_a_ticket_for_another_instance_is_sent_elsewhere(
    worker: WorkerProcess, other: dict[str, object]
) -> None:
    error = await failure(worker.inference.Generate(request(request_id="r", ticket=ticket(**other))))
    assert reason_of(error) == "RETRY_ELSEWHERE"


async def test_many_streams_at_once_all_end(worker: WorkerProcess) -> None:
    await worker.control.SetLimits(worker_pb2.SetLimitsRequest(batch_size=2))
    waves = [request(f"Number {index}", sampling={"max_tokens": 20}) for index in range(5)]
    streams = await asyncio.gather(*(read_all(worker.inference.Generate(wave)) for wave in waves))
    assert [stream[-1].usage.completion_tokens for stream in streams] == [20] * 5
