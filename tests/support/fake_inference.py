"""A router and workers that do what a test tells them, on loopback with the real protocol."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc

from chiron.rpc.errors import ChironError, Reason, abort
from chiron.rpc.servers import Server
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[["FakeDoor", pb.GenerateRequest, Context], AsyncIterator[pb.GenerateResponse]]

WORDS = ("Once", " upon", " a", " time")


class FakeDoor(inference_pb2_grpc.InferenceServiceServicer):
    """Serves Generate by its script: one behaviour per call, the last one for all further calls."""

    def __init__(self, name: str, *script: Behaviour) -> None:
        self.name = name
        self.script = list(script) or [answer()]
        self.generated: list[pb.GenerateRequest] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = 0
        self.running = 0
        self.address = ""

    async def Generate(
        self, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.generated.append(request)
        self.headers.append(_text_metadata(context))
        behave = self.script[0] if len(self.script) == 1 else self.script.pop(0)
        self.running += 1
        try:
            async for response in behave(self, request, context):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        await abort(context, ChironError(Reason.INTERNAL, "a worker does not route"))


class FakeRouter(FakeDoor):
    """Routes to the first of its workers that is not excluded; refuses with `refusal` where it is set."""

    def __init__(self, *workers: FakeDoor, script: tuple[Behaviour, ...] = ()) -> None:
        super().__init__("router", *script)
        self.workers = list(workers)
        self.routed: list[pb.RouteRequest] = []
        self.route_headers: list[dict[str, str]] = []
        self.refusal: ChironError | None = None
        self.refusals: list[ChironError | None] = []
        """What the next calls are refused with; None: not."""
        self.spec_version = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.RouteResponse:
        self.routed.append(request)
        self.route_headers.append(_text_metadata(context))
        await self.hold.wait()
        refusal = self.refusals.pop(0) if self.refusals else self.refusal
        if refusal is not None:
            await abort(context, refusal)
        able = [worker for worker in self.workers if worker.name not in request.excluded_instance_ids]
        if not able:
            await abort(context, ChironError(Reason.NO_INSTANCE, "every instance is excluded"))
        return pb.RouteResponse(
            instance_id=able[0].name,
            incarnation=1,
            address=able[0].address,
            ticket=f"ticket for {able[0].name}".encode(),
            ticket_ttl_ms=2000,
            request_id=request.request_id,
            spec_version=self.spec_version,
        )


def answer(*words: str, per_message: int = 1, choices: int = 1) -> Behaviour:
    """Answers with these words, one token each, and ends by itself; a resumed call gets the rest."""
    words = words or WORDS

    async def behave(
        door: FakeDoor, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        for first in range(len(request.resume.delivered_token_ids), len(words), per_message):
            yield pb.GenerateResponse(
                deltas=[
                    delta(words[first : first + per_message], first, choice=choice)
                    for choice in range(choices)
                ]
            )
        ends = [
            pb.OutputDelta(choice=choice, first_token_index=len(words), finish_reason=pb.FINISH_REASON_STOP)
            for choice in range(choices)
        ]
        ends[-1].usage.CopyFrom(
            pb.Usage(prompt_tokens=5, cached_prompt_tokens=2, completion_tokens=len(words) * choices)
        )
        ends[-1].timing.CopyFrom(pb.Timing(ttft_ms=12, queue_ms=3, instance_id=door.name, preemptions=1))
        yield pb.GenerateResponse(deltas=ends)

    return behave


def refuse(reason: Reason, message: str = "no", **details: Any) -> Behaviour:
    """Ends the call with this error before any token."""

    async def behave(
        door: FakeDoor, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        await abort(context, ChironError(reason, message, **details))
        yield pb.GenerateResponse()

    return behave


def break_off(*words: str, reason: Reason = Reason.STREAM_INTERRUPTED) -> Behaviour:
    """Sends these words, after those of earlier attempts, then ends the call with an error."""

    async def behave(
        door: FakeDoor, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(deltas=[delta(words, len(request.resume.delivered_token_ids))])
        await abort(context, ChironError(reason, "the worker was lost"))

    return behave


def stall(*words: str) -> Behaviour:
    """Sends these words, then nothing more."""

    async def behave(
        door: FakeDoor, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        if words:
            yield pb.GenerateResponse(deltas=[delta(words, 0)])
        await asyncio.Event().wait()

    return behave


def send(*deltas: pb.OutputDelta) -> Behaviour:
    """Sends exactly these deltas and ends without an error."""

    async def behave(
        door: FakeDoor, request: pb.GenerateRequest, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        for each in deltas:
            yield pb.GenerateResponse(deltas=[each])

    return behave


def delta(words: tuple[str, ...] | list[str], first: int, *, choice: int = 0) -> pb.OutputDelta:
    """A delta whose token ids are 100 plus the token's index."""
    return pb.OutputDelta(
        choice=choice,
        first_token_index=first,
        token_ids=[100 + first + index for index in range(len(words))],
        text="".join(words),
    )


@asynccontextmanager
async def serving(
    *doors: FakeDoor,
    credentials: grpc.ServerCredentials | None = None,
    ports: Mapping[FakeDoor, int] | None = None,
) -> AsyncIterator[None]:
    """Serves each door on a port of its own, or the given one, and sets its `address`."""
    servers = []
    try:
        for door in doors:
            server = Server([])
            inference_pb2_grpc.add_InferenceServiceServicer_to_server(door, server.grpc)
            wanted = f"127.0.0.1:{(ports or {}).get(door, 0)}"
            if credentials is None:
                port = server.bind(wanted)
            else:
                port = server.grpc.add_secure_port(wanted, credentials)
            door.address = f"127.0.0.1:{port}"
            await server.start()
            servers.append(server)
        yield
    finally:
        for server in servers:
            await server.stop(0)


class Blackhole:
    """A socket that lets connections in and never says a word; `with` opens it."""

    def __enter__(self) -> Blackhole:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def connections(self) -> int:
        """How many connections came in since the last count."""
        count = 0
        with suppress(BlockingIOError):
            while True:
                self._listener.accept()[0].close()
                count += 1
        return count


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


class Relay:
    """Passes TCP through to a door until the wire is cut; counts the connections that it took."""

    def __init__(self, door: FakeDoor) -> None:
        self._target = door.address
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.connections = 0
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relay]:
        server = self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._pipes, return_exceptions=True)
            await server.wait_closed()

    def close(self) -> None:
        """Resets every connection and takes no more."""
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Resets every connection, as the death of the host's process does."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        host, port = self._target.rsplit(":", 1)
        there, out = await asyncio.open_connection(host, int(port))
        self._writers += [writer, out]
        for source, sink in ((reader, out), (there, writer)):
            task = asyncio.create_task(_pipe(source, sink))
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        return
    finally:
        sink.close()


def _text_metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
