"""A worker that streams one token every few milliseconds and costs next to nothing itself.

It stands in for a GPU so that a router can be measured: real gRPC, prepared chunks, no engine.
    python -m bench.paced_worker PORT
Requests: `sampling.max_tokens` tokens, `sampling.top_k` milliseconds apart (0: 10), after the first one
`sampling.min_tokens` of them (0: 1) in a message, as a worker merges them that has many streams;
such messages leave at the ticks that a worker's do.
A request with `sampling.ignore_eos` sends its first token and then idles until it is cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

from chiron.internal.v1 import worker_pb2
from chiron.rpc.servers import Server
from chiron.service import announce
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.worker.outbox import leaves_at

INSTANCE_ID = "bench-1"
INCARNATION = 1
_BATCH_SIZE = 100_000


class PacedInference:
    """Streams prepared chunks on an absolute schedule."""

    def __init__(self, load: PacedLoad) -> None:
        self._load = load

    async def generate(self, request: pb.GenerateRequest, context: Any) -> None:
        """One chunk a token, all but the last alike."""
        loop = asyncio.get_running_loop()
        interval = (request.sampling.top_k or 10) / 1000
        count = request.sampling.max_tokens or 1
        merged = request.sampling.min_tokens or 1
        first, chunk = (
            pb.GenerateResponse(
                deltas=[
                    pb.OutputDelta(
                        first_token_index=1,
                        token_ids=[1234] * tokens,
                        text=" word" * tokens,
                        text_ends=range(5, 5 * tokens + 1, 5),
                    )
                ]
            )
            for tokens in (1, merged)
        )
        last = pb.GenerateResponse(
            deltas=[
                pb.OutputDelta(
                    first_token_index=count - 1,
                    token_ids=[2],
                    finish_reason=pb.FINISH_REASON_LENGTH,
                    usage=pb.Usage(prompt_tokens=1, completion_tokens=count),
                )
            ]
        )
        self._load.started(request.request_id)
        try:
            at = loop.time()
            for index in range(0, count - 1, merged):
                await context.write(chunk if index else first)
                if request.sampling.ignore_eos:
                    await asyncio.Event().wait()
                at = leaves_at(at, interval * merged) if merged > 1 else at + interval
                await asyncio.sleep(at - loop.time())
            await context.write(last)
        finally:
            self._load.finished(request.request_id)


class PacedLoad:
    """WatchLoad with room for everyone; tells started and finished ids every 20 ms."""

    def __init__(self) -> None:
        self._running = 0
        self._started: list[str] = []
        self._finished: list[str] = []
        self._changed = asyncio.Event()

    def started(self, request_id: str) -> None:
        """Notes an accepted request."""
        self._running += 1
        self._started.append(request_id)
        self._changed.set()

    def finished(self, request_id: str) -> None:
        """Notes an ended request."""
        self._running -= 1
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
                    running=types_pb2.ClassCounts(interactive=self._running),
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
