"""The agent's end of a worker's control socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.v1 import types_pb2
from services.local_agent.ticket_keys import TicketKeys

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_COMMAND_TIMEOUT_S = 10.0
_WAKE_TIMEOUT_S = 300.0
_RECONNECT_S = 0.2
_OPTIONS = [
    # The socket appears some seconds after the process; a refused attempt on it costs next to nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


class CommandError(Exception):
    """The worker did not carry out a command; the text is its answer."""


class WorkerLink:
    """One incarnation's control socket."""

    def __init__(self, socket: Path, incarnation: int) -> None:
        """Connects lazily; the socket need not exist yet."""
        self._incarnation = incarnation
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)

    async def watch(
        self, interval_ms: int, on_statistics: Callable[[worker_pb2.WatchStatisticsResponse], None]
    ) -> None:
        """Hands over every statistics message until cancelled; a broken stream is opened again."""
        request = worker_pb2.WatchStatisticsRequest(interval_ms=interval_ms)
        while True:
            try:
                async for message in self._stub.WatchStatistics(request, wait_for_ready=True):
                    # A predecessor on the same socket path is no news of this worker.
                    if message.incarnation == self._incarnation:
                        on_statistics(message)
            except grpc.aio.AioRpcError as error:
                _LOG.debug(
                    "statistics stream of incarnation %d ended: %s", self._incarnation, error.details()
                )
            await asyncio.sleep(_RECONNECT_S)

    async def give_keys(self, keys: TicketKeys) -> None:
        """Hands over the keys of tickets as they change, until cancelled."""
        given: KeyRing | None = None
        while True:
            ring = await keys.newer_than(given)
            request = worker_pb2.SetTicketKeysRequest(keys=ring.to_message())
            try:
                await self._stub.SetTicketKeys(request, wait_for_ready=True)
                given = ring
            except grpc.aio.AioRpcError as error:
                _LOG.debug("incarnation %d did not take its keys: %s", self._incarnation, error.details())
                await asyncio.sleep(_RECONNECT_S)

    async def drain(self, timeout_s: float) -> int:
        """Returns when no request is left, with the number that the timeout cut off. Raises CommandError."""
        request = worker_pb2.DrainRequest(timeout_s=timeout_s)
        return (await _answer(self._stub.Drain(request, timeout=timeout_s + _COMMAND_TIMEOUT_S))).aborted

    async def set_role(self, role: types_pb2.Role.ValueType) -> None:
        """Raises CommandError."""
        request = worker_pb2.SetWorkerRoleRequest(role=role)
        await _answer(self._stub.SetWorkerRole(request, timeout=_COMMAND_TIMEOUT_S))

    async def set_limits(self, batch_size: int, step_token_budget: int) -> worker_pb2.SetLimitsResponse:
        """Returns what is in force; 0 leaves one as it is. Raises CommandError."""
        request = worker_pb2.SetLimitsRequest(batch_size=batch_size, step_token_budget=step_token_budget)
        return await _answer(self._stub.SetLimits(request, timeout=_COMMAND_TIMEOUT_S))

    async def preempt(self, request_ids: list[str]) -> list[str]:
        """Returns those that were running and now wait. Raises CommandError."""
        request = worker_pb2.PreemptRequest(request_ids=request_ids)
        return list(
            (await _answer(self._stub.Preempt(request, timeout=_COMMAND_TIMEOUT_S))).preempted_request_ids
        )

    async def hand_over(self, grant: worker_pb2.HandOverRequest) -> None:
        """Says how fast a worker that drains may hand its streams over. Raises CommandError."""
        await _answer(self._stub.HandOver(grant, timeout=_COMMAND_TIMEOUT_S))

    async def sleep(self, level: int, drain_timeout_s: float) -> int:
        """Returns once the weights are off the GPU, with the number of requests that were cut off.

        Cancelled while it drains, the worker serves on. Raises CommandError.
        """
        request = worker_pb2.SleepRequest(level=level, drain_timeout_s=drain_timeout_s)
        timeout_s = drain_timeout_s + _WAKE_TIMEOUT_S
        return (await _answer(self._stub.Sleep(request, timeout=timeout_s))).aborted

    async def wake(self) -> None:
        """Returns when the worker serves again. Raises CommandError."""
        await _answer(self._stub.Wake(worker_pb2.WakeRequest(), timeout=_WAKE_TIMEOUT_S))

    async def state(self, timeout_s: float) -> types_pb2.InstanceState.ValueType | None:
        """What the worker says of itself now; None: nothing within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                call = self._stub.WatchStatistics(worker_pb2.WatchStatisticsRequest(), wait_for_ready=True)
                async for message in call:
                    return message.state
        except (TimeoutError, grpc.aio.AioRpcError):
            pass
        return None

    async def close(self) -> None:
        """Ends every call and the connection."""
        await self._channel.close()


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise CommandError(f"{error.code().name}: {error.details()}") from error
