"""A worker whose every answer the test decides: WatchLoad and Generate on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc

from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.rpc.errors import ChironError, abort
from chiron.rpc.servers import Server
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2


@dataclass(eq=False)
class FakeCall:
    """One Generate call, answered by the test through `send`, `finish` and `fail`."""

    request: pb.GenerateRequest
    metadata: dict[str, str | bytes]
    time_remaining: float | None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    _out: asyncio.Queue[bytes | ChironError | None] = field(default_factory=asyncio.Queue)

    def send(self, response: pb.GenerateResponse | bytes) -> None:
        """Sends one message; bytes go out as they are."""
        self._out.put_nowait(response if isinstance(response, bytes) else response.SerializeToString())

    def text(self, text: str, token: int = 1) -> None:
        """Sends one token with its text."""
        self.send(pb.GenerateResponse(deltas=[pb.OutputDelta(token_ids=[token], text=text)]))

    def finish(self) -> None:
        """Ends the stream with OK."""
        self._out.put_nowait(None)

    def fail(self, error: ChironError) -> None:
        """Ends the stream with an error."""
        self._out.put_nowait(error)


class FakeWorker:
    """Serves `Generate` and `WatchLoad`; `load` is what its subscribers are told on `publish`."""

    def __init__(
        self,
        instance_id: str,
        *,
        batch_size: int = 4,
        role: types_pb2.Role.ValueType = types_pb2.ROLE_MIXED,
        incarnation: int = 1,
    ) -> None:
        self.instance_id = instance_id
        self.load = worker_pb2.WatchLoadResponse(
            instance_id=instance_id,
            incarnation=incarnation,
            role=role,
            state=types_pb2.INSTANCE_STATE_READY,
            batch_size=batch_size,
            kv_free_tokens=100_000,
            batch_credits=batch_size,
            batch_credit_ttl_ms=60_000,
        )
        self.address = ""
        self.calls: asyncio.Queue[FakeCall] = asyncio.Queue()
        self.refuse_with: ChironError | None = None
        """Answer to every Generate, when set."""
        self._subscribers: set[asyncio.Queue[worker_pb2.WatchLoadResponse | None]] = set()
        self.tell_ended: list[bool] = []
        """Whether each of them asked for what ended requests came to."""
        self.subscriptions = 0
        """WatchLoad calls since the start."""

    async def start(self, address: str = "127.0.0.1:0") -> FakeWorker:
        """Listens; `address` says where."""
        self._server = Server(["chiron.v1.InferenceService", "chiron.internal.v1.WorkerService"])
        handler = grpc.unary_stream_rpc_method_handler(
            self._generate, request_deserializer=pb.GenerateRequest.FromString
        )
        generic = grpc.method_handlers_generic_handler("chiron.v1.InferenceService", {"Generate": handler})
        self._server.grpc.add_generic_rpc_handlers((generic,))
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(_Watch(self), self._server.grpc)
        self.address = f"127.0.0.1:{self._server.bind(address)}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        """Goes away at once, as a killed process does."""
        await self._server.grpc.stop(None)

    def publish(self, *, started: list[str] | None = None, finished: list[str] | None = None) -> None:
        """Sends `load` with these ids to every subscriber."""
        message = worker_pb2.WatchLoadResponse()
        message.CopyFrom(self.load)
        message.started_request_ids.extend(started or [])
        message.finished_request_ids.extend(finished or [])
        for queue in self._subscribers:
            queue.put_nowait(message)

    def break_watches(self) -> None:
        """Ends every subscription; the next ones are accepted."""
        for queue in self._subscribers:
            queue.put_nowait(None)

    async def watch(self) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        self.subscriptions += 1
        queue: asyncio.Queue[worker_pb2.WatchLoadResponse | None] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            yield self.load
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self._subscribers.discard(queue)

    async def _generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[pb.GenerateRequest, bytes]
    ) -> None:
        if self.refuse_with is not None:
            await abort(context, self.refuse_with)  # type: ignore[arg-type]
        metadata = dict(context.invocation_metadata() or ())
        call = FakeCall(request, metadata, context.time_remaining())
        self.calls.put_nowait(call)
        try:
            while (item := await call._out.get()) is not None:
                if isinstance(item, ChironError):
                    await abort(context, item)  # type: ignore[arg-type]
                await context.write(item)
        except asyncio.CancelledError:
            call.cancelled = True
            raise
        finally:
            call.ended.set()


class _Watch(worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, worker: FakeWorker) -> None:
        self._worker = worker

    async def WatchLoad(
        self, request: worker_pb2.WatchLoadRequest, context: object
    ) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        self._worker.tell_ended.append(request.tell_ended)
        async for load in self._worker.watch():
            yield load
