"""The load generator of the data-path benchmark, in a process of its own.

    python -m bench.load MODE DOOR WORKER REQUESTS CONCURRENCY TOKENS INTERVAL_MS MERGED
MODE: direct (to the worker), proxy (through the router), lookaside (Route, then the worker) or pick (Route).
Prints one JSON line: requests, tokens (as counted from the chunks), ttft_ms (sorted), wall_s.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field

import uvloop

from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

_CHANNELS = 8


@dataclass(slots=True)
class Result:
    """What the streams of one run saw."""

    requests: int = 0
    tokens: int = 0
    ttft_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    mode: str
    door: str
    worker: str
    requests: int
    concurrency: int
    tokens: int
    interval_ms: int
    merged: int
    """Tokens in a message after the first; 0: as a worker with its default settings has it."""


class _Stubs:
    """A few connections to one server, used in turn."""

    def __init__(self, address: str) -> None:
        self.channels = [open_channel(address) for _ in range(_CHANNELS)]
        self._stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in self.channels]

    def __getitem__(self, index: int) -> inference_pb2_grpc.InferenceServiceStub:
        return self._stubs[index % _CHANNELS]


async def _one(plan: Plan, door: _Stubs, worker: _Stubs, index: int, result: Result) -> None:
    request = pb.GenerateRequest(
        request_id=f"bench-{index}",
        model="bench",
        prompt="x" * 1024,
        sampling=pb.SamplingParams(
            max_tokens=plan.tokens, top_k=plan.interval_ms, min_tokens=min(plan.merged, plan.tokens)
        ),
    )
    begun = time.perf_counter()
    if plan.mode in ("lookaside", "pick"):
        route = await door[index].Route(
            pb.RouteRequest(
                request_id=request.request_id, model="bench", prompt_tokens=256, max_tokens=plan.tokens
            )
        )
        if plan.mode == "pick":
            result.ttft_ms.append((time.perf_counter() - begun) * 1000)
            result.requests += 1
            return
        request.ticket = route.ticket
    target = door if plan.mode == "proxy" else worker
    first = True
    async for response in target[index].Generate(request):
        if first:
            first = False
            result.ttft_ms.append((time.perf_counter() - begun) * 1000)
        for delta in response.deltas:
            result.tokens += len(delta.token_ids)
    result.requests += 1


async def run(plan: Plan) -> dict[str, object]:
    """Keeps `concurrency` requests open until `requests` have ended."""
    door, worker = _Stubs(plan.door), _Stubs(plan.worker)
    await asyncio.gather(*(channel.channel_ready() for channel in door.channels + worker.channels))
    result = Result()
    indexes = iter(range(plan.requests))

    async def lane() -> None:
        for index in indexes:
            await _one(plan, door, worker, index, result)

    begun = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(plan.concurrency)))
    wall = time.perf_counter() - begun
    for channel in door.channels + worker.channels:
        await channel.close()
    return {
        "requests": result.requests,
        "tokens": result.tokens,
        "ttft_ms": sorted(result.ttft_ms),
        "wall_s": wall,
    }


if __name__ == "__main__":
    mode, door_address, worker_address, *numbers = sys.argv[1:]
    print(json.dumps(uvloop.run(run(Plan(mode, door_address, worker_address, *map(int, numbers))))))
