"""A worker that streams one token every few milliseconds and costs next to nothing itself.

It stands in for a GPU so that a router can be measured: real gRPC, prepared chunks, no engine.
    python -m bench.paced_worker PORT
Requests: `sampling.max_tokens` tokens, `sampling.top_k` milliseconds apart (0: 10), after the first one
`sampling.min_tokens` of them in a message. 0: what a worker's outbox makes of them with its default
settings and as many streams as there are; in that case, too, no token is made before its time.
A request with `sampling.ignore_eos` sends its first token and then idles until it is cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import uvloop

from chiron.internal.v1 import worker_pb2
from chiron.rpc.servers import Server
from chiron.service import announce
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.worker.config import WorkerConfig
from services.worker.outbox import Outbox, Spacing, leaves_at

INSTANCE_ID = "bench-1"
INCARNATION = 1
_BATCH_SIZE = 100_000


class PacedInference:
    """Streams prepared tokens on an absolute schedule."""

    def __init__(self, load: PacedLoad) -> None:
        self._load = load
        config = WorkerConfig(INSTANCE_ID, INCARNATION, spec_file=Path(), socket=Path())
        self._spacing = Spacing(config.messages_per_s, config.longest_hold_ms / 1e3, lambda: load.running)

    async def generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """All tokens but the last are alike."""
        self._load.started(request.request_id)
        try:
            if request.sampling.min_tokens:
                await _merged(request, context)
            else:
                await self._spaced(request, context)
        finally:
            self._load.finished(request.request_id)

    async def _spaced(self, request: pb.GenerateRequest, context: Any) -> None:
        outbox = Outbox(lambda: self._spacing.interval_s(request.slo.itl_ms))
        filling = asyncio.create_task(_fill(outbox, request))
        try:
            while (message := await outbox.take()) is not None:
                await context.write(message)
        finally:
            outbox.drop()
            filling.cancel()


async def _fill(outbox: Outbox, request: pb.GenerateRequest) -> None:
    loop = asyncio.get_running_loop()
    interval, count = _interval_s(request), request.sampling.max_tokens or 1
    token, last = _delta(1), _last(count)
    at = loop.time()
    for _ in range(count - 1):
        outbox.put(token)
        outbox.send()
        if request.sampling.ignore_eos:
            await asyncio.Event().wait()
        at += interval
        await asyncio.sleep(at - loop.time())
    outbox.put(last)
    outbox.close(pb.Usage(prompt_tokens=1, completion_tokens=count), pb.Timing())


async def _merged(request: pb.GenerateRequest, context: Any) -> None:
    loop = asyncio.get_running_loop()
    interval, count = _interval_s(request), request.sampling.max_tokens or 1
    merged = request.sampling.min_tokens
    first, chunk = (pb.GenerateResponse(deltas=[_delta(tokens)]) for tokens in (1, merged))
    last = _last(count)
    last.usage.CopyFrom(pb.Usage(prompt_tokens=1, completion_tokens=count))
    at = loop.time()
    for index in range(0, count - 1, merged):
        await context.write(chunk if index else first)
        at = leaves_at(at, interval * merged) if merged > 1 else at + interval
        await asyncio.sleep(at - loop.time())
    await context.write(pb.GenerateResponse(deltas=[last]))


def _interval_s(request: pb.GenerateRequest) -> float:
    return (request.sampling.top_k or 10) / 1000


def _delta(tokens: int) -> pb.OutputDelta:
    return pb.OutputDelta(
        first_token_index=1,
        token_ids=[1234] * tokens,
        text=" word" * tokens,
        text_ends=range(5, 5 * tokens + 1, 5),
    )


def _last(count: int) -> pb.OutputDelta:
    return pb.OutputDelta(first_token_index=count - 1, token_ids=[2], finish_reason=pb.FINISH_REASON_LENGTH)


class PacedLoad:
    """WatchLoad with room for everyone; tells started and finished ids every 20 ms."""

    def __init__(self) -> None:
        self.running = 0
        """Requests under way."""
        self._started: list[str] = []
        self._finished: list[str] = []
        self._changed = asyncio.Event()

    def started(self, request_id: str) -> None:
        """Notes an accepted request."""
        self.running += 1
        self._started.append(request_id)
        self._changed.set()

    def finished(self, request_id: str) -> None:
        """Notes an ended request."""
        self.running -= 1
        self._finished.append(request_id)
        self._changed.set()

    async def watch(self, request: worker_pb2.WatchLoadRequest, context: Any) -> None:
        """For the one router of a benchmark."""
        while True:
            self._changed.clear()
            started, self._started = self._started, []
            finished, self._finished = self._finished, []
            await context.write(
                worker_pb2.WatchLoadResponse(
                    instance_id=INSTANCE_ID,
                    incarnation=INCARNATION,
                    role=types_pb2.ROLE_MIXED,
                    state=types_pb2.INSTANCE_STATE_READY,
                    batch_size=_BATCH_SIZE,
                    running=types_pb2.ClassCounts(interactive=self.running),
                    kv_free_tokens=1 << 40,
                    started_request_ids=started,
                    finished_request_ids=finished,
                    itl_mean_ms=10,
                    batch_credits=_BATCH_SIZE,
                    batch_credit_ttl_ms=2_000,
                )
            )
            await self._changed.wait()
            await asyncio.sleep(0.02)


async def _serve() -> None:
    load = PacedLoad()
    server = Server(["chiron.v1.InferenceService", "chiron.internal.v1.WorkerService"])
    generate = grpc.unary_stream_rpc_method_handler(
        PacedInference(load).generate, pb.GenerateRequest.FromString, pb.GenerateResponse.SerializeToString
    )
    watch = grpc.unary_stream_rpc_method_handler(
        load.watch, worker_pb2.WatchLoadRequest.FromString, worker_pb2.WatchLoadResponse.SerializeToString
    )
    server.grpc.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("chiron.v1.InferenceService", {"Generate": generate}),
            grpc.method_handlers_generic_handler("chiron.internal.v1.WorkerService", {"WatchLoad": watch}),
        )
    )
    port = server.bind(f"127.0.0.1:{sys.argv[1]}")
    await server.start()
    await server.set_serving(True)
    announce("paced-worker", address=f"127.0.0.1:{port}")
    await server.grpc.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve())
