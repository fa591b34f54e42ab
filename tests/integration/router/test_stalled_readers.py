"""Readers that take nothing: bounded memory, a typed end, and nobody else notices."""

from __future__ import annotations

import asyncio

import grpc
import psutil
import pytest

from chiron.internal.v1 import control_pb2
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from tests.support.wait import eventually
from tests.support.worker_process import WorkerProcess, failure, read_all, worker_process

STALLED = 16
TOKENS = 3000
SIM = {
    "name": "m",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 32,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.05},
}


@pytest.fixture
async def worker(tmp_path, stack, controller) -> WorkerProcess:
    worker = await stack.enter_async_context(worker_process(tmp_path, SIM, instance_id="a"))
    await worker.until()
    controller.add("m")
    controller.table.instances.append(
        control_pb2.RoutedInstance(
            instance_id="a",
            incarnation=7,
            model="m",
            address=worker.address,
            role=types_pb2.ROLE_MIXED,
            state=types_pb2.INSTANCE_STATE_READY,
        )
    )
    return worker


def request(tokens: int, **fields: object) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, **fields)
    return pb.GenerateRequest(model="m", prompt="Tell me about the sea.", sampling=sampling)


async def test_readers_that_take_nothing_harm_nobody_and_lose_their_streams(
    worker, start_router, stack
) -> None:
    router = await start_router(reader_stall_s=2.0)
    await eventually(lambda: all(one.usable for one in router.core._instances.values()))
    expected = [delta.text for delta in await read_all(router.stub.Generate(request(200)))]
    # Small windows: what a reader does not take stays with the sender.
    options = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(router.address, options=options))
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    process = psutil.Process(worker.process.pid)
    before = process.memory_info().rss
    stalled = [stub.Generate(request(TOKENS, logprobs=20)) for _ in range(STALLED)]
    await asyncio.gather(*(call.read() for call in stalled))
    # Their tokens are all made; somebody else is served as ever.
    await worker.load_when(lambda load: load.running.interactive == 0)
    others = await asyncio.gather(*(read_all(router.stub.Generate(request(200))) for _ in range(8)))
    assert {"".join(delta.text for delta in deltas) for deltas in others} == {"".join(expected)}
    grown = process.memory_info().rss - before
    # A token with 20 alternatives takes about 1 KB in memory.
    assert grown < STALLED * TOKENS * 3_000, f"{grown / 2**20:.0f} MiB"
    # Reading before its time is up would save a stream.
    await eventually(lambda: not len(router.router._streams), within_s=20.0)
    errors = await asyncio.gather(*(failure(call) for call in stalled))
    assert {reason_of(error) for error in errors} == {"READER_STALLED"}
    assert {error.code() for error in errors} == {grpc.StatusCode.ABORTED}
    await worker.idle()
