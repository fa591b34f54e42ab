"""What all requests of one client share: channels, what is known about who can be reached, counts."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import grpc

from chiron.client.budget import RetryBudget
from chiron.client.channels import Channels, Connection, Lease
from chiron.client.errors import DeadlineExceeded, Unavailable
from chiron.client.own_clock import ends_in_time
from chiron.client.reachability import RouterOrder, WorkerReachability
from chiron.client.security import TlsConfig
from chiron.client.stats import ClientStats
from chiron.v1 import inference_pb2 as pb

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
"""Bounds of the time between two looks for a router while none can be reached."""

Remaining = Callable[[], float | None]
"""Tells how many seconds a request has left, None for no limit; raises DeadlineExceeded when none are."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client behaves; see Client for the meaning of each."""

    routers: tuple[str, ...]
    lookaside: bool
    tls: TlsConfig | None
    timeout_s: float | None
    silence_s: float | None
    connect_timeout_s: float
    max_attempts: int
    max_resumes: int
    fallback_memory_s: float
    router_avoid_s: float
    router_wait_s: float
    max_worker_channels: int
    batch_patience_s: float
    metadata: dict[str, str] = field(repr=False)
    """Goes to routers and workers."""
    credentials: dict[str, str] = field(repr=False)
    """Goes to routers alone; at a worker, the ticket speaks for the request."""


class Network:
    """Connects requests to routers and workers, and remembers what came of it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stats = ClientStats()
        self.budget = RetryBudget(time.monotonic())
        self.workers = WorkerReachability(settings.fallback_memory_s)
        self.routers = RouterOrder(settings.routers, settings.router_avoid_s)
        self.closed = False
        self._router_channels = Channels(len(settings.routers), settings.tls)
        self._worker_channels = Channels(settings.max_worker_channels, settings.tls)

    @property
    def open_worker_channels(self) -> int:
        """Channels to workers, in use or kept."""
        return len(self._worker_channels)

    async def router(self, held: ExitStack, remaining_s: Remaining) -> Lease:
        """A connection to the first router that can be reached, held by `held`.

        Where one has answered before, one comes back and is waited for; otherwise there may be none at all.

        Raises Unavailable, naming what is wrong with each, when none can be reached all that time, and what
        `remaining_s` raises.
        """
        gives_up = time.monotonic() + self.settings.router_wait_s
        pause_s = _FIRST_PAUSE_S
        while True:
            failures: list[str] = []
            if (lease := await self._reachable_router(held, remaining_s, failures)) is not None:
                return lease
            # Many requests find no router at once: they must not all come back at once.
            wait_s = pause_s * random.uniform(1.0, 1.5)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            limit_s = remaining_s()
            in_time = time.monotonic() + wait_s < gives_up and (limit_s is None or wait_s < limit_s)
            if not self.routers.ever_answered or not in_time:
                text = f"no router can be reached: {'; '.join(failures)}"
                raise Unavailable(text, reason="ROUTER_UNREACHABLE")
            await asyncio.sleep(wait_s)

    async def _reachable_router(
        self, held: ExitStack, remaining_s: Remaining, failures: list[str]
    ) -> Lease | None:
        """Tries each router once; adds to `failures` what is wrong with those that cannot be reached."""
        for address in self.routers.order(time.monotonic()):
            with ExitStack() as trial:
                lease = trial.enter_context(self._router_channels.lease(address))
                connection = await self._connect(lease, remaining_s)
                if connection is Connection.READY:
                    self.routers.answered(address)
                    held.push(trial.pop_all())
                    return lease
                self._router_channels.discard(address)
                self.routers.failed(address, time.monotonic())
                failures.append(f"{address}: {await self._why(lease, connection)}")
        return None

    async def worker(
        self, held: ExitStack, address: str, remaining_s: Remaining
    ) -> tuple[Lease | None, Connection]:
        """A connection to the worker at `address`, held by `held`; None when it cannot be reached.

        Raises what `remaining_s` raises.
        """
        with ExitStack() as trial:
            lease = trial.enter_context(self._worker_channels.lease(address))
            connection = await self._connect(lease, remaining_s)
            if connection is Connection.READY:
                self.workers.answered(address)
                held.push(trial.pop_all())
                return lease, connection
        self._worker_channels.discard(address)
        if connection is Connection.REFUSED:
            self.workers.refused(address, time.monotonic())
        else:
            self.workers.timed_out(address, time.monotonic())
        return None, connection

    async def close(self) -> None:
        """Ends every call and closes every connection."""
        self.closed = True
        await self._worker_channels.close()
        await self._router_channels.close()

    async def _connect(self, lease: Lease, remaining_s: Remaining) -> Connection:
        patience_s = self.settings.connect_timeout_s
        limit_s = remaining_s()
        if limit_s is None or limit_s >= patience_s:
            return await lease.connect(patience_s)
        connection = await lease.connect(limit_s)
        if connection is Connection.TIMED_OUT:
            # The request ran out of time, which says nothing about the other side.
            raise DeadlineExceeded(
                f"timeout_s passed before a connection to {lease.address} came about",
                reason="DEADLINE_EXCEEDED",
            )
        return connection

    async def _why(self, lease: Lease, connection: Connection) -> str:
        """Why no connection came about. gRPC tells the cause to a call only, so one that fails is made."""
        if connection is Connection.TIMED_OUT:
            return f"no connection within {self.settings.connect_timeout_s:g} s"
        patience_s = self.settings.connect_timeout_s
        call = lease.stub.Route(pb.RouteRequest(), timeout=patience_s)
        try:
            with ends_in_time(call, patience_s, "no cause was told"):
                await call
        except grpc.aio.AioRpcError as error:
            return error.details() or error.code().name
        except DeadlineExceeded as error:
            return error.message
        return "the connection was refused at first"
