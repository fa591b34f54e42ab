"""A client that opens streams through a router and cancels them, in a process of its own.

    python -m bench.churn DOOR STREAMS_PER_S SECONDS
Every second stream is cancelled at once, the others after their first message. Prints one JSON line: streams,
wall_s, first_tokens, turned_away (TOO_MANY_ABANDONED), unexpected (other ends, counted by status and text).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

import grpc
import uvloop

from chiron.rpc.errors import Reason, reason_of
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

_CHANNELS = 8
_TICK_S = 0.02
_ANSWERED, _AWAY = "answered", Reason.TOO_MANY_ABANDONED.name


async def _one(stub: inference_pb2_grpc.InferenceServiceStub, index: int, ends: Counter[str]) -> None:
    request = pb.GenerateRequest(
        request_id=f"churn-{index}",
        model="bench",
        prompt="x" * 1024,
        sampling=pb.SamplingParams(max_tokens=100, ignore_eos=True),
    )
    call = stub.Generate(request)
    try:
        if index % 2:
            await call.read()
            ends[_ANSWERED] += 1
        else:
            await asyncio.sleep(0)
    except grpc.aio.AioRpcError as error:
        reason = reason_of(error)
        ends[reason if reason == _AWAY else f"{error.code().name} {reason}: {error.details()}"] += 1
    finally:
        call.cancel()


async def run(door: str, streams_per_s: float, seconds: float) -> dict[str, object]:
    """Opens streams on an absolute schedule, whatever becomes of the earlier ones."""
    channels = [open_channel(door) for _ in range(_CHANNELS)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    running: set[asyncio.Task[None]] = set()
    ends: Counter[str] = Counter()
    opened, begun = 0, time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        for index in range(opened, int(passed * streams_per_s)):
            task = asyncio.create_task(_one(stubs[index % _CHANNELS], index, ends))
            running.add(task)
            task.add_done_callback(running.discard)
            opened += 1
        await asyncio.sleep(_TICK_S)
    wall_s = time.perf_counter() - begun
    await asyncio.gather(*running)
    for channel in channels:
        await channel.close()
    return {
        "streams": opened,
        "wall_s": wall_s,
        "first_tokens": ends.pop(_ANSWERED, 0),
        "turned_away": ends.pop(_AWAY, 0),
        "unexpected": ends,
    }


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))))
