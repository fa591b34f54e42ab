"""Runs the requests of one exchange, and takes their answers: whole, or as they come."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence

from google.protobuf.message import DecodeError

from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import batch_pb2
from chiron.v1 import inference_pb2 as pb
from services.router.access import leave
from services.router.answer import Answer
from services.router.http.chunks import Chunks
from services.router.http.exchange import Exchange
from services.router.http.head import summed
from services.router.http.streaming import Events
from services.router.request import PendingRequest
from services.router.serving import Call

_QUIET_MS = 15_000.0
"""What is between a client and this door ends connections on which nothing comes for a minute or so."""
CAME_TO = ("x-chiron-instance", "x-chiron-ttft-ms", "x-chiron-itl-ms", "x-chiron-preemptions")
"""Headers of a whole answer: what became of its promises."""


class Taker(ABC):
    """The sink of one request.

    A write that fails means that the caller has gone. What makes the answer none is therefore kept, and
    raised once the request has ended.
    """

    def __init__(self) -> None:
        self.failure: ChironError | None = None

    async def write(self, message: bytes, /) -> None:
        """Takes a message of the answer."""
        if self.failure is not None:
            return
        try:
            await self.take(message)
        except DecodeError:
            text = "a message of the instance that answered could not be read"
            self.failure = ChironError(Reason.INTERNAL, text)
        except ChironError as error:
            self.failure = error

    def time_remaining(self) -> float | None:
        """It is wanted until its client goes."""
        return None

    @abstractmethod
    async def take(self, message: bytes) -> None:
        """The same. Raises DecodeError, and ChironError: there will be no answer."""


async def run(exchange: Exchange, requests: Sequence[pb.GenerateRequest], takers: Sequence[Taker]) -> None:
    """Gives each request's answer to its taker. The first failure ends them all.

    Raises:
        ChironError: invalid, refused or ended here, or its answer is none.
        WorkerStatusError: the worker's own error.
    """
    call = await exchange.enter()
    if len(requests) == 1:
        wire, quiet_s = requests[0].SerializeToString(), _QUIET_MS / 1000
        await call.generate(wire, requests[0], takers[0], tell_after_s=quiet_s)
    else:
        await _all(exchange, call, requests, takers)
    for taker in takers:
        if taker.failure is not None:
            raise taker.failure


async def _all(
    exchange: Exchange, first: Call, messages: Sequence[pb.GenerateRequest], takers: Sequence[Taker]
) -> None:
    """All are let in before any begins. The first one has the exchange's own call, each other one a call
    beside it."""
    requests = first.admit(*messages)
    quiet_s = _QUIET_MS / 1000

    async def beside(message: pb.GenerateRequest, request: PendingRequest, taker: Taker) -> None:
        with first.beside(exchange.scope["path"]) as call:
            wire = message.SerializeToString()
            await call.run(wire, message, request, taker, tell_after_s=quiet_s)

    try:
        async with asyncio.TaskGroup() as group:
            wire = messages[0].SerializeToString()
            run_first = first.run(wire, messages[0], requests[0], takers[0], tell_after_s=quiet_s)
            group.create_task(run_first)
            for message, request, taker in zip(messages[1:], requests[1:], takers[1:], strict=True):
                group.create_task(beside(message, request, taker))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    finally:
        # A task that is cancelled before its first step has given nothing back.
        for request in requests:
            leave(request)


class _Whole(Taker):
    def __init__(self, request: pb.GenerateRequest) -> None:
        super().__init__()
        self._answer = Answer(max(1, request.sampling.n))
        self._model = request.model

    async def take(self, message: bytes) -> None:
        await self._answer.write(message)

    def output(self) -> batch_pb2.ItemOutput:
        try:
            if self._answer.complete:
                return self._answer.output(self._model)
        except DecodeError as error:
            text = f"the answer could not be read: {error}"
            raise ChironError(Reason.INTERNAL, text) from None
        raise _incomplete()


async def collect(exchange: Exchange, requests: Sequence[pb.GenerateRequest]) -> list[batch_pb2.ItemOutput]:
    """The whole answers. Raises as `run`."""
    takers = [_Whole(request) for request in requests]
    await run(exchange, requests, takers)
    outputs = [taker.output() for taker in takers]
    exchange.usage = summed(output.usage for output in outputs)
    return outputs


class _Part(Taker):
    """Takes the messages of one of a stream's requests."""

    def __init__(self, index: int, chunks: Chunks, events: Events) -> None:
        super().__init__()
        self._index, self._chunks, self._events = index, chunks, events
        self._said_ms = 0.0

    async def take(self, message: bytes) -> None:
        read = pb.GenerateResponse.FromString(message)
        told = self._chunks.take(read, self._index)
        if told:
            events = told.encode()
            if not self._events.put(events):
                await self._events.write(events)
        elif read.progress:
            await self._wait(read.progress[-1])

    async def _wait(self, progress: pb.Progress) -> None:
        """Says now and then what is waited for, in a comment: what fails after one can only be an event."""
        if progress.waited_ms - self._said_ms >= _QUIET_MS:
            self._said_ms = progress.waited_ms
            await self._events.write(f": {' '.join(progress.text.split())}\n\n".encode())


def stream(
    exchange: Exchange, requests: Sequence[pb.GenerateRequest], chunks: Chunks
) -> Callable[[Events], Awaitable[None]]:
    """What writes the events of one answer to all the requests; raises as `run`."""

    async def write(events: Events) -> None:
        for request in requests:
            request.tell_progress = True
        await run(exchange, requests, [_Part(index, chunks, events) for index in range(len(requests))])
        if not chunks.complete:
            raise _incomplete()
        exchange.usage = chunks.usage

    return write


def _incomplete() -> ChironError:
    return ChironError(Reason.STREAM_INTERRUPTED, "the instance that answered ended before its last message")


def came_to(outputs: Sequence[batch_pb2.ItemOutput]) -> Mapping[str, str]:
    """The headers of CAME_TO; of several prompts the slowest counts."""
    timings = [output.timing for output in outputs]
    values = (
        ",".join(dict.fromkeys(timing.instance_id for timing in timings)),
        f"{max(timing.ttft_ms for timing in timings):.3f}",
        f"{max(timing.itl_mean_ms for timing in timings):.3f}",
        str(sum(timing.preemptions for timing in timings)),
    )
    return dict(zip(CAME_TO, values, strict=True))
