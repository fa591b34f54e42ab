"""Readers that take nothing of their streams: what router and worker hold for them meanwhile.

A worker with the `sim` engine has made all their tokens within seconds; the windows of their connection are
small, so that next to nothing of it lies with the readers.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import grpc
import psutil

from bench.one_instance import controller_of
from bench.paced_worker import INCARNATION, INSTANCE_ID
from bench.processes import started
from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.rpc.errors import reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

STALL_S = 5.0
_TRIES = 100
_SPEC = {
    "name": "bench",
    "engine": "sim",
    "gpusPerInstance": 1,
    "maxBatchSize": 256,
    "engineArgs": {"load_time_s": 0, "time_scale": 0.05},
}
_SMALL_WINDOWS = [("grpc.http2.lookahead_bytes", 16_384), ("grpc.http2.bdp_probe", 0)]


def _mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


async def stalled(readers: int, tokens: int) -> dict[str, Any]:
    """Resident memory of a router and a worker in MiB: before, at its most, once the readers are ended."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "spec.json")
        await asyncio.to_thread(spec.write_text, json.dumps(_SPEC))
        sets = {
            "instance_id": INSTANCE_ID,
            "incarnation": INCARNATION,
            "spec_file": spec,
            "socket": Path(folder, "w.sock"),
            "require_tickets": "false",
        }
        arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        async with (
            started("services.worker", *arguments) as (worker, worker_pid),
            controller_of(worker) as controller,
        ):
            await _idle(worker)
            chosen = ("listen=127.0.0.1:0", f"controller={controller}", f"reader_stall_s={STALL_S:g}")
            sets_of_router = [part for item in chosen for part in ("--set", item)]
            async with started("services.router", *sets_of_router) as (door, router_pid):
                figures = await _measure(
                    door, worker, {"router": router_pid, "worker": worker_pid}, readers, tokens
                )
    return {"readers": readers, "tokens_each": tokens, **figures}


async def _measure(door: str, worker: str, pids: dict[str, int], readers: int, tokens: int) -> dict[str, Any]:
    request = pb.GenerateRequest(model="bench", prompt="x")
    request.sampling.max_tokens, request.sampling.ignore_eos, request.sampling.logprobs = tokens, True, 20
    async with grpc.aio.insecure_channel(door, options=_SMALL_WINDOWS) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        # What a first stream allocates is there for good. Until the router has its table, it ends at once.
        for _ in range(_TRIES):
            if await _end(stub.Generate(request)) == "OK":
                break
            await asyncio.sleep(0.1)
        else:
            raise SystemExit("error: the router does not serve")
        before = {name: _mib(pid) for name, pid in pids.items()}
        most, over = dict(before), asyncio.Event()

        async def watch() -> None:
            while not over.is_set():
                for name, pid in pids.items():
                    most[name] = max(most[name], _mib(pid))
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        calls = [stub.Generate(request) for _ in range(readers)]
        await asyncio.gather(*(call.read() for call in calls))
        await _idle(worker)
        all_made = {name: _mib(pid) for name, pid in pids.items()}
        await asyncio.sleep(2 * STALL_S)
        ends = await asyncio.gather(*(_end(call) for call in calls))
        over.set()
        await watching
        await _idle(worker)
        after = {name: _mib(pid) for name, pid in pids.items()}
    return {
        "ends": {end: ends.count(end) for end in set(ends)},
        **{
            f"{name}_rss_mib": {
                "before": before[name],
                "all tokens made": all_made[name],
                "most": most[name],
                "after": after[name],
            }
            for name in pids
        },
    }


async def _end(call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]) -> str:
    """Why a stream has ended; reads what is left of it."""
    try:
        while await call.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return reason_of(error) or error.code().name
    return "OK"


async def _idle(worker: str) -> None:
    """Waits until the worker is there and runs nothing."""
    async with open_channel(worker) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        async for load in stub.WatchLoad(worker_pb2.WatchLoadRequest(subscriber="bench")):
            if load.batch_size and not (load.running.interactive or load.waiting.interactive):
                return
