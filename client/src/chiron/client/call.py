"""One request from its first attempt to its last: where to go, what to try again, when to give up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass

import grpc

from chiron.client.assembly import Assembly
from chiron.client.channels import Connection, Lease
from chiron.client.details import Peer, from_rpc, timed_out
from chiron.client.errors import (
    ChironError,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    RetryElsewhere,
    StreamInterrupted,
    TicketExpired,
    Unavailable,
)
from chiron.client.network import Network
from chiron.client.output import Chunk, Completion
from chiron.client.request import route_request
from chiron.client.tracing import RequestSpan, start_span
from chiron.v1 import inference_pb2 as pb

_RETRIED = (ConnectionLost, RetryElsewhere, StreamInterrupted, TicketExpired)
"""Errors of one instance or connection, not of the request."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
"""Bounds of the time to wait, where no router says how long, once every router has turned a request away."""


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
    ) -> None:
        self._network = network
        self._request = request
        self._timeout_s = timeout_s
        self._metadata = metadata
        self._traceparent = traceparent
        self._started_s = 0.0
        self._attempt = 0
        self._full = 0
        """Attempts that a worker turned away because it was full."""
        self._refused = False
        self._instance_id = ""
        self._excluded: list[str] = []
        self._turned_away: set[str] = set()
        """Routers that have failed or refused this request since its last pause."""
        self._pause_s = _FIRST_PAUSE_S

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Yields what arrives. What breaks before the first token is tried again, later breaks raise."""
        with self._lifetime() as span:
            while True:
                assembly = self._assembly()
                try:
                    async with aclosing(self._run(assembly)) as chunks:
                        async for chunk in chunks:
                            if chunk.usage is not None:
                                self._finish(span, assembly)
                            yield chunk
                except ChironError as error:
                    await self._try_again(error, assembly, restart=False)
                else:
                    return

    async def whole(self) -> Completion:
        """Returns the whole answer. What breaks is tried again from scratch, also after the first token."""
        with self._lifetime() as span:
            while True:
                assembly = self._assembly()
                try:
                    async with aclosing(self._run(assembly)) as chunks:
                        async for _ in chunks:
                            pass
                except ChironError as error:
                    await self._try_again(error, assembly, restart=True)
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
            span.failed(error, self._attempt + 1)
            raise
        finally:
            span.end()

    def _assembly(self) -> Assembly:
        return Assembly(
            self._request.request_id,
            choices=max(1, self._request.sampling.n),
            attempts=self._attempt + 1,
            started_s=self._started_s,
        )

    def _finish(self, span: RequestSpan, assembly: Assembly) -> Completion:
        usage, timing = assembly.check_complete()
        choices = assembly.choices()
        span.finished(usage, timing, [choice.finish_reason for choice in choices], self._attempt + 1)
        request = self._request
        return Completion(request.request_id, request.model, choices, usage, timing, self._attempt + 1)

    async def _try_again(self, error: ChironError, assembly: Assembly, *, restart: bool) -> None:
        """Prepares the next attempt, or raises what the caller gets to see."""
        settings, stats = self._network.settings, self._network.stats
        may = isinstance(error, _RETRIED) and (restart or not assembly.begun)
        self._full += self._worker_refused(error) and error.metadata.get("full") == "true"
        may = may and self._attempt + 1 - self._full < settings.max_attempts
        if may and self._paid(error) and await self._paused(error):
            stats.retries += 1
            stats.retried += self._attempt == 0
            self._attempt += 1
            if self._instance_id and self._instance_id not in self._excluded:
                self._excluded.append(self._instance_id)
            return
        if self._attempt:
            error.add_note(f"after {self._attempt + 1} attempts")
        if assembly.begun and isinstance(error, Unavailable):
            interrupted = StreamInterrupted(
                error.message, reason="STREAM_INTERRUPTED", metadata=error.metadata
            )
            interrupted.delivered = assembly.choices()
            raise interrupted from error
        raise error

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
        """Lets time pass when no other router is left to try; False when there is no time for that."""
        if not self._turned_away.issuperset(self._network.settings.routers):
            return True
        self._turned_away.clear()
        # Many clients are turned away at once: they must not all come back at once.
        pause_s = (error.retry_after_s or self._pause_s) * random.uniform(1.0, 1.5)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
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
            door = await self._door(held)
            request = self._request
            request.attempt = self._attempt
            request.elapsed_ms = self._elapsed_ms()
            request.ticket = door.ticket
            with self._typed_errors(door.lease.address, is_router=door.is_router):
                call = door.lease.stub.Generate(
                    request, timeout=self._remaining_s(), metadata=self._headers(to_router=door.is_router)
                )
                last: Chunk | None = None
                try:
                    async for response in call:
                        now_s = time.monotonic()
                        for delta in response.deltas:
                            chunk = assembly.add(delta, now_s)
                            if chunk.usage is None:
                                yield chunk
                            else:
                                last = chunk
                finally:
                    call.cancel()
            assembly.check_complete()
        if last is not None:
            yield last

    async def _door(self, held: ExitStack) -> _Door:
        """Where this attempt goes: straight to a worker, or through the router where that is not possible."""
        network = self._network
        self._instance_id = ""
        if network.settings.lookaside:
            if not network.workers.lookaside_rests(time.monotonic()):
                route = await self._route()
                self._instance_id = route.instance_id
                if not network.workers.avoided(route.address, time.monotonic()):
                    lease, connection = await network.worker(held, route.address, self._remaining_s)
                    if lease is not None:
                        return _Door(lease, route.ticket)
                    last = self._attempt + 1 == network.settings.max_attempts
                    if connection is Connection.REFUSED and not self._refused and not last:
                        self._refused = True
                        raise ConnectionLost(
                            f"instance {route.instance_id} at {route.address}: connection refused",
                            reason="UNAVAILABLE",
                        )
                self._instance_id = ""
            network.stats.fallbacks += 1
        return _Door(await network.router(held, self._remaining_s), is_router=True)

    async def _route(self) -> pb.RouteResponse:
        with ExitStack() as held:
            lease = await self._network.router(held, self._remaining_s)
            route = route_request(self._request)
            route.attempt = self._attempt
            route.elapsed_ms = self._elapsed_ms()
            route.excluded_instance_ids.extend(self._excluded)
            with self._typed_errors(lease.address, is_router=True):
                return await lease.stub.Route(
                    route, timeout=self._remaining_s(), metadata=self._headers(to_router=True)
                )

    @contextmanager
    def _typed_errors(self, address: str = "", *, is_router: bool = False) -> Iterator[None]:
        """Turns what gRPC raises into typed errors; what a router could not do counts against its address."""
        try:
            yield
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure, self._peer(address, is_router=is_router), timeout_s=self._timeout_s)
            if is_router and isinstance(error, _RETRIED):
                self._network.routers.failed(address, time.monotonic())
                self._turned_away.add(address)
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
            assert self._timeout_s is not None
            raise DeadlineExceeded(timed_out(self._timeout_s), reason="DEADLINE_EXCEEDED")
        return left_s
