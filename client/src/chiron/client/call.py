"""One request from its first attempt to its last: where to go, what to try again, when to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from chiron.client.assembly import Assembly
from chiron.client.attempts import Attempts
from chiron.client.channels import Connection, Lease
from chiron.client.details import Peer, from_rpc, timed_out
from chiron.client.errors import (
    AlreadyExists,
    CannotResume,
    ChironError,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    Overloaded,
    RetryElsewhere,
    StreamInterrupted,
    TicketExpired,
    TurnedAway,
    Unavailable,
)
from chiron.client.network import Network
from chiron.client.output import Chunk, Completion
from chiron.client.own_clock import ends_in_time, silent
from chiron.client.pauses import Pauses
from chiron.client.progress import OnProgress, tell, watch_route
from chiron.client.request import route_request
from chiron.client.tracing import RequestSpan, start_span
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2

_RETRIED = (ConnectionLost, RetryElsewhere, StreamInterrupted, TicketExpired)
"""Errors of one instance or connection, not of the request."""
_SEVERAL = "the stream broke after its first token and cannot be resumed: it has several choices"

_Cut = TypeVar("_Cut", StreamInterrupted, CannotResume)


@dataclass(frozen=True, slots=True)
class _Door:
    """Where an attempt enters: a worker that the router chose, or the router itself."""

    lease: Lease
    ticket: bytes = b""
    is_router: bool = False


class Call:
    """One request; use it once, either as a stream of chunks or whole."""

    def __init__(
        self,
        network: Network,
        request: pb.GenerateRequest,
        *,
        timeout_s: float | None,
        metadata: dict[str, str],
        traceparent: str,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._network = network
        self._on_progress = on_progress
        request.tell_progress = on_progress is not None
        self._request = request
        self._timeout_s = timeout_s
        # A batch request that gave its place away waits for another one as long as it takes.
        batch = request.request_class == types_pb2.REQUEST_CLASS_BATCH
        self._silence_s = None if timeout_s is not None or batch else network.settings.silence_s
        self._metadata = metadata
        self._traceparent = traceparent
        self._started_s = 0.0
        self._attempts = Attempts(network.settings.max_attempts, network.settings.max_resumes)
        self._spec_version = 0
        """Of the instance that a router chose for the stream's beginning; 0: it did not say."""
        self._refused = False
        self._instance_id = ""
        self._handed_back = False
        """Whether the last attempt ended because a worker gave its place to interactive work, or drains."""
        self._excluded: list[str] = []
        self._pauses = Pauses(network.settings.routers)

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yields what arrives. What breaks before the first token is tried again, later it goes on."""
        with self._lifetime() as span:
            assembly = self._assembly()
            while True:
                try:
                    async with aclosing(self._run(assembly)) as chunks:
                        async for chunk in chunks:
                            if chunk.usage is not None:
                                self._finish(span, assembly)
                            yield chunk
                except ChironError as error:
                    assembly = await self._next(error, assembly, whole=False)
                else:
                    return

    async def whole(self) -> Completion:
        """Returns the whole answer. What breaks goes on where it can, and else begins again."""
        with self._lifetime() as span:
            assembly = self._assembly()
            while True:
                try:
                    async with aclosing(self._run(assembly)) as chunks:
                        async for _ in chunks:
                            pass
                except ChironError as error:
                    assembly = await self._next(error, assembly, whole=True)
                else:
                    return self._finish(span, assembly)

    @contextmanager
    def _lifetime(self) -> Iterator[RequestSpan]:
        self._started_s = time.monotonic()
        stats = self._network.stats
        stats.requests += 1
        self._network.budget.request(self._started_s)
        span = start_span(self._request, self._traceparent)
        self._metadata = {**self._network.settings.metadata, **self._metadata, **span.headers()}
        try:
            yield span
        except ChironError as error:
            stats.failed += 1
            span.failed(error, self._attempts.count)
            raise
        finally:
            span.end()

    def _assembly(self) -> Assembly:
        return Assembly(
            self._request.request_id,
            choices=max(1, self._request.sampling.n),
            attempts=self._attempts.count,
            started_s=self._started_s,
        )

    def _finish(self, span: RequestSpan, assembly: Assembly) -> Completion:
        usage, timing = assembly.check_complete()
        choices = assembly.choices()
        span.finished(usage, timing, [choice.finish_reason for choice in choices], self._attempts.count)
        request = self._request
        return Completion(request.request_id, request.model, choices, usage, timing, self._attempts.count)

    async def _next(self, error: ChironError, assembly: Assembly, *, whole: bool) -> Assembly:
        """What one more attempt adds to; raises what the caller gets to see when there is to be none."""
        tries, stats = self._attempts, self._network.stats
        several = self._request.sampling.n > 1
        # Only an answer that nobody has read yet can begin again.
        restart = (
            whole and assembly.begun and (several or isinstance(error, CannotResume) or not tries.may_resume)
        )
        resume = assembly.begun and not restart
        may = isinstance(error, (*_RETRIED, TurnedAway)) or self._outnumbered(error)
        may = may or self._own_quota(error) or (restart and isinstance(error, CannotResume))
        if may and resume and several:
            raise _delivered(CannotResume(_SEVERAL, reason="CANNOT_RESUME"), assembly) from error
        progressed = resume and tries.progressed(assembly.delivered_tokens)
        full = self._worker_refused(error) and error.metadata.get("full") == "true"
        # A worker has given a batch request's place to interactive work, or drains: nothing has failed.
        yielded = self._handed_back = error.metadata.get("handed_back", "").isdecimal()
        if yielded:
            assembly.preemptions = int(error.metadata["handed_back"])
        lost = resume and not yielded
        may = may and tries.another(progressed=progressed, full=full or yielded, resume=lost)
        # Going on from new tokens repeats no work.
        if may and (progressed or yielded or self._paid(error)) and await self._paused(error):
            tries.begin(resume=lost)
            stats.retries += 1
            stats.retried += tries.count == 2
            stats.resumes += resume
            stats.resumed += lost and tries.resumes == 1
            if self._instance_id and self._instance_id not in self._excluded:
                self._excluded.append(self._instance_id)
            if not resume:
                return self._assembly()
            assembly.attempts = tries.count
            return assembly
        if tries.count > 1:
            error.add_note(f"after {tries.count} attempts")
        if assembly.begun and isinstance(error, Unavailable | Overloaded):
            interrupted = StreamInterrupted(
                error.message, reason="STREAM_INTERRUPTED", metadata=error.metadata
            )
            raise _delivered(interrupted, assembly) from error
        if isinstance(error, CannotResume):
            _delivered(error, assembly)
        raise error

    def _outnumbered(self, error: ChironError) -> bool:
        """Whether a worker refuses this attempt for a newer one, made by a router that has lost it since."""
        known = error.metadata.get("attempt", "")
        if not (isinstance(error, AlreadyExists) and self._attempts.count > 1 and known.isdecimal()):
            return False
        self._attempts.outnumber(int(known))
        self._instance_id = ""
        return True

    def _own_quota(self, error: ChironError) -> bool:
        """Whether a router refuses for the quota a request that another attempt was let in for.

        It may not know yet that the worker of that attempt is lost. Where it names no time, there never is
        room.
        """
        refused = error.reason == "QUOTA_EXCEEDED" and error.retry_after_s is not None
        return refused and self._attempts.count > 1

    def _worker_refused(self, error: ChironError) -> bool:
        """Whether a worker has turned the attempt away, having done nothing for it."""
        return bool(self._instance_id) and error.reason == "RETRY_ELSEWHERE"

    def _paid(self, error: ChironError) -> bool:
        """Whether the budget allows a retry.

        A worker's refusal costs nothing: what comes again waits in the router's queue.
        """
        if self._worker_refused(error) or self._network.budget.spend(time.monotonic()):
            return True
        self._network.stats.throttled += 1
        error.add_note("not tried again: this client retries too large a share of its requests")
        return False

    async def _paused(self, error: ChironError) -> bool:
        """Lets time pass where that is needed; False when there is no time for that."""
        pause_s = self._pauses.take_s(
            error.retry_after_s,
            elsewhere=not isinstance(error, TurnedAway),
            own_quota=self._own_quota(error),
        )
        if not pause_s:
            return True
        left_s = self._left_s()
        if left_s is not None and left_s <= pause_s:
            return False
        await asyncio.sleep(pause_s)
        return True

    async def _run(self, assembly: Assembly) -> AsyncGenerator[Chunk, None]:
        """One attempt.

        The last chunk comes when the stream has ended well, so that a reader who stops there cancels nothing.
        """
        with ExitStack() as held, self._typed_errors():
            request = self._request
            weights = (self._spec_version or assembly.spec_version) if assembly.begun else 0
            if assembly.begun:
                request.resume.CopyFrom(assembly.resume_state(weights))
            else:
                request.ClearField("resume")
                self._spec_version = 0
            door = await self._door(held, weights)
            assembly.instance_id = self._instance_id
            request.attempt = self._attempts.number
            request.elapsed_ms = self._elapsed_ms()
            request.ticket = door.ticket
            with self._typed_errors(door.lease.address, is_router=door.is_router):
                left_s = self._remaining_s()
                call = door.lease.stub.Generate(
                    request, timeout=left_s, metadata=self._headers(to_router=door.is_router)
                )
                listening = held.enter_context(
                    ends_in_time(call, left_s, self._told_late(), silence_s=self._silence_s)
                )
                last: Chunk | None = None
                try:
                    async for response in call:
                        listening.heard()
                        now_s = time.monotonic()
                        for progress in response.progress:
                            tell(self._on_progress, progress)
                        for delta in response.deltas:
                            chunk = assembly.add(delta, now_s)
                            if chunk.usage is None:
                                yield chunk
                            else:
                                last = chunk
                        listening.waits()
                except grpc.aio.AioRpcError:
                    # Whoever is lost after the last chunk owes nothing more.
                    if last is None:
                        raise
                finally:
                    call.cancel()
            assembly.check_complete()
        if last is not None:
            yield last

    async def _door(self, held: ExitStack, weights: int) -> _Door:
        """Where this attempt goes: straight to a worker, or through the router where that is not possible.

        `weights` is the spec version that a stream began on which goes on; 0: it begins.
        """
        network = self._network
        self._instance_id = ""
        if network.settings.lookaside:
            if not network.workers.lookaside_rests(time.monotonic()):
                route = await self._route(weights)
                self._instance_id = route.instance_id
                self._spec_version = weights or route.spec_version
                if not network.workers.avoided(route.address, time.monotonic()):
                    lease, connection = await network.worker(held, route.address, self._remaining_s)
                    if lease is not None:
                        return _Door(lease, route.ticket)
                    if connection is Connection.REFUSED and not self._refused and not self._attempts.last:
                        self._refused = True
                        raise ConnectionLost(
                            f"instance {route.instance_id} at {route.address}: connection refused",
                            reason="UNAVAILABLE",
                        )
                self._instance_id = ""
            network.stats.fallbacks += 1
        return _Door(await network.router(held, self._remaining_s), is_router=True)

    async def _route(self, weights: int) -> pb.RouteResponse:
        with ExitStack() as held:
            lease = await self._network.router(held, self._remaining_s)
            route = route_request(self._request)
            route.attempt = self._attempts.number
            route.spec_version = weights
            route.elapsed_ms = self._elapsed_ms()
            route.excluded_instance_ids.extend(self._excluded)
            route.handed_back = self._handed_back
            with self._typed_errors(lease.address, is_router=True):
                metadata, told = self._headers(to_router=True), self._on_progress
                if told is not None:
                    answer = await watch_route(
                        lease.stub,
                        route,
                        told,
                        timeout_s=self._remaining_s(),
                        silence_s=self._silence_s,
                        told_late=self._told_late(),
                        metadata=metadata,
                    )
                    if answer is not None:
                        return answer
                left_s = self._remaining_s()
                call = lease.stub.Route(route, timeout=left_s, metadata=metadata)
                with ends_in_time(call, left_s, self._told_late(), silence_s=self._silence_s):
                    return await call

    @contextmanager
    def _typed_errors(self, address: str = "", *, is_router: bool = False) -> Iterator[None]:
        """Turns what gRPC raises into typed errors; what a router could not do counts against its address."""
        try:
            yield
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure, self._peer(address, is_router=is_router), timeout_s=self._timeout_s)
            if is_router and isinstance(error, _RETRIED):
                self._network.routers.failed(address, time.monotonic())
                self._pauses.turned_away(address)
            raise error from failure
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # A closed channel shows as either; a cancellation that the reader asked for stays one.
            task = asyncio.current_task()
            if self._network.closed and task is not None and not task.cancelling():
                raise ClientClosed("the client was closed during the request") from None
            raise

    def _peer(self, address: str, *, is_router: bool) -> Peer | None:
        if not address:
            return None
        if is_router:
            return Peer("router", f"router {address}")
        return Peer("worker", f"instance {self._instance_id} at {address}")

    def _headers(self, *, to_router: bool) -> tuple[tuple[str, str], ...]:
        credentials = self._network.settings.credentials if to_router else {}
        return tuple({**self._metadata, **credentials}.items())

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._started_s) * 1e3

    def _left_s(self) -> float | None:
        """Seconds left, not more than 0 when time is up; None without a limit."""
        return None if self._timeout_s is None else self._timeout_s - (time.monotonic() - self._started_s)

    def _remaining_s(self) -> float | None:
        """As `_left_s`, but raises DeadlineExceeded when time is up."""
        left_s = self._left_s()
        if left_s is not None and left_s <= 0:
            raise DeadlineExceeded(self._told_late(), reason="DEADLINE_EXCEEDED")
        return left_s

    def _told_late(self) -> str:
        if self._timeout_s is not None:
            return timed_out(self._timeout_s)
        return "" if self._silence_s is None else silent(self._silence_s)


def _delivered(error: _Cut, assembly: Assembly) -> _Cut:
    error.delivered = assembly.choices()
    return error
