"""Calls of BatchService: to which router, what is tried again, and for how long."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

import grpc

from chiron.client.channels import Lease
from chiron.client.details import Peer, from_rpc, timed_out
from chiron.client.errors import (
    BatchBrokenOff,
    ChironError,
    ClientClosed,
    ConnectionLost,
    DeadlineExceeded,
    NoBatchQueue,
    Overloaded,
    ReaderStalled,
    RetryElsewhere,
    Unavailable,
)
from chiron.client.network import Network
from chiron.client.own_clock import Cancellable, ends_in_time, silent
from chiron.v1 import batch_pb2_grpc

T = TypeVar("T")
Answer = TypeVar("Answer", covariant=True)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_AGAIN = (Unavailable, BatchBrokenOff, ReaderStalled)
_OF_ROUTER = (ConnectionLost, RetryElsewhere)
"""What another router may do better."""


class UnaryCall(Cancellable, Awaitable[Answer], Protocol[Answer]):
    """A call of grpc.aio with one answer."""


class Patience:
    """How long one operation goes on trying without getting anywhere."""

    def __init__(self, network: Network, timeout_s: float | None) -> None:
        """Begins an operation that may take `timeout_s` seconds in all; None: no limit."""
        self._network = network
        self._timeout_s = timeout_s
        self._started_s = time.monotonic()
        self._stuck_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._without_queue: set[str] = set()
        network.budget.request(self._started_s)

    @property
    def told_late(self) -> str:
        """What whoever asked is told when a call is given up that was not answered."""
        if self._timeout_s is not None:
            return timed_out(self._timeout_s)
        silence_s = self._network.settings.silence_s
        return "" if silence_s is None else silent(silence_s)

    def progressed(self) -> None:
        """The operation has come further: what failed before counts no more."""
        self._stuck_s, self._pause_s = None, _FIRST_PAUSE_S

    def remaining_s(self) -> float | None:
        """Seconds left for a call; None: no limit. Raises DeadlineExceeded when none are."""
        if self._timeout_s is None:
            return None
        left_s = self._timeout_s - (time.monotonic() - self._started_s)
        if left_s <= 0:
            raise DeadlineExceeded(timed_out(self._timeout_s), reason="DEADLINE_EXCEEDED")
        return left_s

    async def bear(self, error: ChironError, address: str = "") -> None:
        """Lets some time pass, after which the operation may be tried again; else raises the error.

        Args:
            error: what went wrong.
            address: the router that said so, where one was reached.
        """
        if isinstance(error, NoBatchQueue) and address:
            # Another router may have one.
            self._without_queue.add(address)
            self._network.routers.failed(address, time.monotonic())
            if not self._without_queue.issuperset(self._network.settings.routers):
                return
            raise error
        nobody = error.reason == "ROUTER_UNREACHABLE" and not self._network.routers.ever_answered
        again = isinstance(error, _AGAIN) or (isinstance(error, Overloaded) and error.retry_after_s)
        if nobody or not again:
            raise error
        now = time.monotonic()
        self._stuck_s = now if self._stuck_s is None else self._stuck_s
        # Many are turned away at once: they must not all come back at once.
        pause_s = (error.retry_after_s or self._pause_s) * random.uniform(1.0, 1.5)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        waited_s, patience_s = now - self._stuck_s, self._network.settings.batch_patience_s
        if waited_s + pause_s > patience_s:
            error.add_note(f"after {waited_s:.1f} s of trying")
            raise error
        left_s = self.remaining_s()
        if left_s is not None and left_s <= pause_s:
            raise error
        if not self._network.budget.spend(now):
            self._network.stats.throttled += 1
            error.add_note("not tried again: this client retries too large a share of its requests")
            raise error
        self._network.stats.retries += 1
        await asyncio.sleep(pause_s)


class BatchCalls:
    """BatchService of whichever router answers."""

    def __init__(self, network: Network) -> None:
        self.network = network

    async def unary(
        self,
        make: Callable[[batch_pb2_grpc.BatchServiceStub, dict[str, Any]], UnaryCall[T]],
        patience: Patience,
    ) -> T:
        """Makes a call until it is answered; it must be one that may be made twice.

        One that is not answered ends by this client's own clock too, without a limit after `silence_s`.
        """
        silence_s = self.network.settings.silence_s
        while True:
            address = ""
            try:
                with ExitStack() as held:
                    lease = await self.network.router(held, patience.remaining_s)
                    address = lease.address
                    with self.typed_errors(lease):
                        options = self.options(patience)
                        call = make(lease.batches, options)
                        left_s, told = options["timeout"], patience.told_late
                        with ends_in_time(call, left_s, told, silence_s=silence_s):
                            return await call
            except ChironError as error:
                await patience.bear(error, address)

    def options(self, patience: Patience) -> dict[str, Any]:
        """Time limit and metadata of a call."""
        settings = self.network.settings
        metadata = tuple({**settings.metadata, **settings.credentials}.items())
        return {"timeout": patience.remaining_s(), "metadata": metadata}

    @contextmanager
    def typed_errors(self, lease: Lease) -> Iterator[None]:
        """Turns what gRPC raises into typed errors; what the router could not do counts against it."""
        try:
            yield
        except grpc.aio.AioRpcError as failure:
            error = from_rpc(failure, Peer("router", f"router {lease.address}"))
            if isinstance(error, _OF_ROUTER):
                self.network.routers.failed(lease.address, time.monotonic())
            raise error from failure
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # A closed channel shows as either; a cancellation that the caller asked for stays one.
            task = asyncio.current_task()
            if self.network.closed and task is not None and not task.cancelling():
                raise ClientClosed("the client was closed during the call") from None
            raise
