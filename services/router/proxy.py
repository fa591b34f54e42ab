"""Generate at the router: finds an instance and passes its messages on as the bytes that they are.

Where they go is a sink: the caller's RPC, or an item of a batch.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import grpc

from chiron.policy.words import RequestClass
from chiron.rpc.errors import ChironError, Reason, handed_back_after, reason_of
from chiron.v1 import inference_pb2 as pb
from services.router.delivered import Delivered
from services.router.outcomes import Blame, Verdict, blame, judge, ran
from services.router.placer import Placer
from services.router.request import PendingRequest, Placement
from services.router.retries import Attempts, Retries
from services.router.spans import RequestTrace
from services.router.streams import ProxiedStream, Streams
from services.router.telling import Tell


class Sink(Protocol):
    """Takes the messages of an answer; a gRPC call's context is one."""

    async def write(self, message: bytes, /) -> None:
        """Takes a message; what waits here keeps the worker's next one from being read."""
        ...

    def time_remaining(self) -> float | None:
        """Time until nobody wants the answer any more, in seconds; None: no limit."""
        ...


class WorkerStatusError(Exception):
    """A worker ended the call with a status that the caller gets unchanged."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        super().__init__(error.details())
        self.error = error


@dataclass(frozen=True, slots=True)
class _Failed:
    """A try that another instance may make good."""

    error: grpc.aio.AioRpcError | None
    """The worker's; None: the instance went before the call was made, or has fallen silent."""
    blame: Blame


_NO_PLACE = (Reason.RETRY_ELSEWHERE, Reason.NO_INSTANCE, Reason.QUEUE_FULL)


class Proxy:
    """Carries one Generate call from caller to worker and back, whatever becomes of the worker."""

    def __init__(self, retries: Retries, max_resumes: int, placer: Placer, streams: Streams) -> None:
        self._retries = retries
        self._max_resumes = max_resumes
        self._placer = placer
        self._streams = streams
        self._time = asyncio.get_running_loop().time

    async def run(
        self,
        wire: bytes,
        message: pb.GenerateRequest,
        request: PendingRequest,
        sink: Sink,
        trace: RequestTrace,
        attempts: Attempts | None = None,
        *,
        tell_progress: bool = False,
        tell_after_s: float = 0.0,
    ) -> None:
        """Streams the answer into `sink`.

        Args:
            wire: the request as it came.
            message: the same, decoded and valid.
            request: the same, as the placement sees it.
            sink: takes the answer.
            trace: of the call.
            attempts: counts what fails; None: nobody asks.
            tell_progress: also say, before the answer, what the request waits for.
            tell_after_s: a shorter wait is not told, in seconds.

        Raises:
            ChironError: refused, or interrupted after the first message and not to be resumed.
            WorkerStatusError: the worker's own error.
        """
        delivered = Delivered(message)
        attempts = attempts or self._retries.begin(first=message.attempt == 0)
        tell = _teller(sink) if tell_progress else None
        resumes, begun = 0, False
        while True:
            placement = await self._place(request, delivered, sink, tell, tell_after_s)
            queued_s = self._time() - request.arrived
            attempt = message.attempt + attempts.made
            trace.placed(placement, attempt, queued_s)
            elapsed_ms = message.elapsed_ms + queued_s * 1000
            overlay = pb.GenerateRequest(
                request_id=request.request_id,
                attempt=attempt,
                elapsed_ms=elapsed_ms,
                ticket=self._placer.tickets.issue(
                    request,
                    placement,
                    attempt=attempt,
                    slo=request.slo,
                    elapsed_ms=elapsed_ms,
                    now=self._time(),
                ),
            )
            if begun:
                overlay.resume.CopyFrom(delivered.state(request.spec_version))
            # Of a field that occurs twice the last value counts, and lists add up, so that the prompt is not
            # encoded again.
            payload = wire + overlay.SerializeToString()
            may_move = delivered.may_move and resumes < self._max_resumes
            failed = await self._attempt(
                payload, message, request, placement, delivered, sink, trace, may_move=may_move
            )
            if failed is None or delivered.complete:
                # Whoever is lost after the last message owes nothing more.
                if self._placer.book is not None and delivered.last is not None:
                    self._placer.book.answered(request.request_id, delivered.last)
                return
            another = attempts.another(failed.blame, progressed=delivered.progressed())
            yielded = failed.blame is Blame.YIELDED
            if yielded:
                self._yielded(request, placement, delivered, failed, trace)
            if not delivered.sent:
                if another:
                    continue
                raise self._refusal(request, attempts, failed)
            if delivered.obstacle:
                text = f"{_lost(placement, failed)}; it cannot be resumed: {delivered.obstacle}"
                raise ChironError(Reason.CANNOT_RESUME, text)
            if not another or (resumes == self._max_resumes and not yielded):
                text = f"{_lost(placement, failed)}, {resumes} resumes after its beginning"
                raise ChironError(Reason.STREAM_INTERRUPTED, text)
            resumes += not yielded
            begun = True
            version = request.spec_version or placement.spec_version or delivered.spec_version
            request.resume(version, self._time())

    def _yielded(
        self,
        request: PendingRequest,
        placement: Placement,
        delivered: Delivered,
        failed: _Failed,
        trace: RequestTrace,
    ) -> None:
        """An instance has handed a request back: it has lost nothing and waits for another slot."""
        request.handed_back = True
        if self._placer.book is not None:
            self._placer.book.handed_back(request.request_id)
        if failed.error is not None:
            delivered.preemptions = handed_back_after(failed.error) or 0
        trace.handed_back(placement, delivered.preemptions)

    async def _place(
        self,
        request: PendingRequest,
        delivered: Delivered,
        sink: Sink,
        tell: Tell | None,
        tell_after_s: float,
    ) -> Placement:
        try:
            return await self._placer.place(request, sink.time_remaining(), tell, tell_after_s)
        except ChironError as error:
            if delivered.begun and error.reason in _NO_PLACE:
                text = f"the stream broke and found no instance: {error.message}"
                raise ChironError(Reason.STREAM_INTERRUPTED, text) from error
            raise

    def _refusal(self, request: PendingRequest, attempts: Attempts, failed: _Failed) -> Exception:
        if failed.error is not None and reason_of(failed.error):
            return WorkerStatusError(failed.error)
        what = f"{attempts.made} tries on instances of {request.model!r} failed before the first token"
        if attempts.broke:
            what += "; no further one, because too many requests are being retried"
        return ChironError(Reason.RETRY_ELSEWHERE, what, retry_after_s=1.0)

    async def _attempt(
        self,
        wire: bytes,
        message: pb.GenerateRequest,
        request: PendingRequest,
        placement: Placement,
        delivered: Delivered,
        sink: Sink,
        trace: RequestTrace,
        *,
        may_move: bool,
    ) -> _Failed | None:
        """One try; None: the answer is complete."""
        link = self._placer.link(placement)
        if link is None:
            self._placer.failed(request, placement, Blame.NONE)
            return _Failed(None, Blame.NONE)
        link.enter()
        request.ran = True
        call = link.generate(wire, timeout=sink.time_remaining(), metadata=trace.headers)
        stream = self._streams.open(call, placement.instance_id, may_move=may_move)
        try:
            await self._forward(stream, delivered, message, request, placement, sink, trace)
        except grpc.aio.AioRpcError as error:
            verdict = judge(error.code(), reason_of(error), delivered=stream.delivered)
            request.ran = ran(verdict, error.code(), delivered=delivered.sent)
            if verdict is Verdict.PASS_ON:
                raise WorkerStatusError(error) from error
            told = blame(verdict, error)
            self._placer.failed(request, placement, told)
            return _Failed(error, told)
        except asyncio.CancelledError:
            if stream.abandoned and not (stream.task is not None and stream.task.cancelling()):
                request.ran = delivered.sent
                return _Failed(None, Blame.UNREACHABLE)
            if stream.ended is None:
                raise
            if stream.task is not None:
                stream.task.uncancel()
            raise stream.ended from None
        except Exception as error:
            if not stream.writing_since:
                raise
            # A write fails only when the caller has gone, sometimes before the cancellation is told.
            raise asyncio.CancelledError from error
        finally:
            self._streams.close(stream)
            link.leave()
            self._placer.release(placement.reservation)
        return None

    async def _forward(
        self,
        stream: ProxiedStream,
        delivered: Delivered,
        message: pb.GenerateRequest,
        request: PendingRequest,
        placement: Placement,
        sink: Sink,
        trace: RequestTrace,
    ) -> None:
        time, write, keep = self._time, sink.write, delivered.add
        chunks = stream.call.__aiter__()
        first = await anext(chunks, None)
        if first is None:
            return
        stream.delivered = True
        self._placer.answered(placement)
        if not delivered.begun:
            self._first_message(message, request, trace)
        keep(first)
        stream.writing_since = time()
        await write(first)
        stream.writing_since = 0.0
        async for chunk in chunks:
            keep(chunk)
            stream.writing_since = time()
            await write(chunk)
            stream.writing_since = 0.0

    def _first_message(
        self, message: pb.GenerateRequest, request: PendingRequest, trace: RequestTrace
    ) -> None:
        ttft_ms = (self._time() - request.arrived) * 1000 + message.elapsed_ms
        trace.first_message(ttft_ms)
        if request.request_class is RequestClass.BATCH:
            return
        limit_ms = (
            message.slo.ttft_ms if message.slo.HasField("ttft_ms") else self._default_ttft(request.model)
        )
        if limit_ms > 0:
            counts = self._placer.demand.of(request.model)
            counts.ttft_seen += 1
            counts.ttft_met += ttft_ms <= limit_ms

    def _default_ttft(self, model: str) -> float:
        routed = self._placer.model(model)
        return routed.slo_defaults.interactive.ttft_ms if routed is not None else 0.0


def _teller(sink: Sink) -> Tell:
    """Passes on what a request waits for. It is no part of the answer: what fails after it may begin anew."""

    async def tell(progress: pb.Progress) -> None:
        try:
            await sink.write(pb.GenerateResponse(progress=[progress]).SerializeToString())
        except Exception as error:
            # A write fails only when the caller has gone, sometimes before the cancellation is told.
            raise asyncio.CancelledError from error

    return tell


def _lost(placement: Placement, failed: _Failed) -> str:
    why = failed.error.details() if failed.error is not None else "it has gone"
    return f"instance {placement.instance_id} was lost while it answered: {why}"
