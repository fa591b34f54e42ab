"""WorkerService: everything on the control socket, WatchLoad alone on the network."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any, NoReturn, TypeVar

import grpc

from chiron.auth.credentials import has_role
from chiron.auth.keys import KeyRing, KeyRingError
from chiron.internal.v1 import worker_pb2, worker_pb2_grpc
from chiron.policy.hand_over import Grant
from chiron.rpc.errors import ChironError, Reason, abort
from chiron.rpc.identity import present
from services.worker import reports
from services.worker.core import Worker
from services.worker.tickets import ROUTER

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

WATCH_LOAD_S = 0.02
"""Least time between two WatchLoad messages of one stream."""
HEARTBEAT_S = 0.5
"""Longest time between two: silence beyond it tells a router that the worker or the way to it has frozen."""
_DEFAULT_INTERVAL_MS = 1000
_INTERVALS_MS = range(10, 60_001)
_RATES = ("interactive_per_s", "batch_per_s", "tokens_per_s", "prefill_tokens_per_s", "valid_s")


class NetworkServicer(worker_pb2_grpc.WorkerServiceServicer):
    """What routers may call: WatchLoad. The rest is refused with NOT_CONTROL_SOCKET."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def WatchLoad(
        self, request: worker_pb2.WatchLoadRequest, context: Context
    ) -> AsyncIterator[worker_pb2.WatchLoadResponse]:
        """Sends the load at once, after each change and at every heartbeat."""
        tls = present().tls
        if tls is not None and tls.mutual and not has_role(context, ROUTER):
            text = "a worker's load is for holders of a router's certificate"
            await abort(context, ChironError(Reason.NOT_ALLOWED, text))
        worker = self.worker
        live_ids = [live.request_id for live in worker.live]
        board = worker.load_board
        with (
            board.subscribe(live_ids, request.subscriber, wants_ends=request.tell_ended) as subscriber,
            worker.prefixes.subscribe(request.prefixes) as news,
        ):
            next_at = 0.0
            while await subscriber.news(next_at, HEARTBEAT_S):
                if subscriber.overrun:
                    error = ChironError(Reason.ABORTED, "this subscriber reads too slowly; subscribe again")
                    await abort(context, error)
                next_at = time.monotonic() + WATCH_LOAD_S
                load = reports.load_response(worker, subscriber)
                load.heartbeat_ms = round(1e3 * HEARTBEAT_S)
                if news is not None and news.any:
                    load.prefixes.CopyFrom(worker.prefixes.take(news))
                yield load

    async def WatchStatistics(
        self, request: worker_pb2.WatchStatisticsRequest, context: Context
    ) -> AsyncIterator[worker_pb2.WatchStatisticsResponse]:
        """Refused on the network."""
        await _refuse(context)
        yield worker_pb2.WatchStatisticsResponse()

    async def SetLimits(
        self, request: worker_pb2.SetLimitsRequest, context: Context
    ) -> worker_pb2.SetLimitsResponse:
        """Refused on the network."""
        await _refuse(context)

    async def SetWorkerRole(
        self, request: worker_pb2.SetWorkerRoleRequest, context: Context
    ) -> worker_pb2.SetWorkerRoleResponse:
        """Refused on the network."""
        await _refuse(context)

    async def Preempt(
        self, request: worker_pb2.PreemptRequest, context: Context
    ) -> worker_pb2.PreemptResponse:
        """Refused on the network."""
        await _refuse(context)

    async def Drain(self, request: worker_pb2.DrainRequest, context: Context) -> worker_pb2.DrainResponse:
        """Refused on the network."""
        await _refuse(context)

    async def HandOver(
        self, request: worker_pb2.HandOverRequest, context: Context
    ) -> worker_pb2.HandOverResponse:
        """Refused on the network."""
        await _refuse(context)

    async def Sleep(self, request: worker_pb2.SleepRequest, context: Context) -> worker_pb2.SleepResponse:
        """Refused on the network."""
        await _refuse(context)

    async def Wake(self, request: worker_pb2.WakeRequest, context: Context) -> worker_pb2.WakeResponse:
        """Refused on the network."""
        await _refuse(context)

    async def SetTicketKeys(
        self, request: worker_pb2.SetTicketKeysRequest, context: Context
    ) -> worker_pb2.SetTicketKeysResponse:
        """Refused on the network."""
        await _refuse(context)


class ControlServicer(NetworkServicer):
    """What the node's agent may call: everything."""

    async def WatchStatistics(
        self, request: worker_pb2.WatchStatisticsRequest, context: Context
    ) -> AsyncIterator[worker_pb2.WatchStatisticsResponse]:
        """Sends statistics at once, every interval, and when the state, role or limits change."""
        interval_ms = request.interval_ms or _DEFAULT_INTERVAL_MS
        if interval_ms not in _INTERVALS_MS:
            what = f"must be {_INTERVALS_MS[0]} to {_INTERVALS_MS[-1]}, not {interval_ms}"
            await abort(context, ChironError.invalid([("interval_ms", what)]))
        worker = self.worker
        statistics = reports.Statistics(worker)
        with worker.statistics_board.subscribe([]) as subscriber:
            while await subscriber.news_within(interval_ms / 1e3):
                yield statistics.take()

    async def SetLimits(
        self, request: worker_pb2.SetLimitsRequest, context: Context
    ) -> worker_pb2.SetLimitsResponse:
        """Sets what is not 0; answers what is in force."""
        call = self.worker.set_limits(request.batch_size, request.step_token_budget)
        batch_size, budget = await _answer(call, context)
        return worker_pb2.SetLimitsResponse(batch_size=batch_size, step_token_budget=budget)

    async def SetWorkerRole(
        self, request: worker_pb2.SetWorkerRoleRequest, context: Context
    ) -> worker_pb2.SetWorkerRoleResponse:
        """Takes another role."""
        try:
            self.worker.set_role(request.role)
        except ChironError as error:
            await abort(context, error)
        return worker_pb2.SetWorkerRoleResponse()

    async def Preempt(
        self, request: worker_pb2.PreemptRequest, context: Context
    ) -> worker_pb2.PreemptResponse:
        """Puts running requests back into the engine's queue."""
        preempted = await _answer(self.worker.preempt(list(request.request_ids)), context)
        return worker_pb2.PreemptResponse(preempted_request_ids=preempted)

    async def Drain(self, request: worker_pb2.DrainRequest, context: Context) -> worker_pb2.DrainResponse:
        """Answers when no request is live."""
        if not 0 <= request.timeout_s < float("inf"):
            what = f"must be a number >= 0, not {request.timeout_s:g}"
            await abort(context, ChironError.invalid([("timeout_s", what)]))
        aborted = await _answer(self.worker.drain(request.timeout_s), context)
        return worker_pb2.DrainResponse(aborted=aborted)

    async def HandOver(
        self, request: worker_pb2.HandOverRequest, context: Context
    ) -> worker_pb2.HandOverResponse:
        """Says how fast running streams may go on elsewhere."""
        bad = [
            (name, f"must be a finite number >= 0, not {value:g}")
            for name in _RATES
            if not 0 <= (value := getattr(request, name)) < float("inf")
        ]
        if bad:
            await abort(context, ChironError.invalid(bad))
        grant = Grant(
            request.interactive_per_s,
            request.batch_per_s,
            request.tokens_per_s,
            request.prefill_tokens_per_s,
        )
        self.worker.hand_overs.granted(grant, request.valid_s)
        return worker_pb2.HandOverResponse()

    async def Sleep(self, request: worker_pb2.SleepRequest, context: Context) -> worker_pb2.SleepResponse:
        """Takes the weights off the GPU, after a drain where one is asked for."""
        timeout_s = request.drain_timeout_s if request.HasField("drain_timeout_s") else None
        if timeout_s is not None and not 0 <= timeout_s < float("inf"):
            what = f"must be a number >= 0, not {timeout_s:g}"
            await abort(context, ChironError.invalid([("drain_timeout_s", what)]))
        aborted = await _answer(self.worker.sleep(request.level, timeout_s), context)
        return worker_pb2.SleepResponse(aborted=aborted)

    async def Wake(self, request: worker_pb2.WakeRequest, context: Context) -> worker_pb2.WakeResponse:
        """Answers when the engine serves again."""
        await _answer(self.worker.wake(), context)
        return worker_pb2.WakeResponse()

    async def SetTicketKeys(
        self, request: worker_pb2.SetTicketKeysRequest, context: Context
    ) -> worker_pb2.SetTicketKeysResponse:
        """Replaces the keys that tickets are checked with."""
        try:
            self.worker.tickets.set_keys(KeyRing.from_message(request.keys))
        except KeyRingError as error:
            await abort(context, ChironError.invalid([("keys", str(error))]))
        return worker_pb2.SetTicketKeysResponse()


async def _answer(call: Awaitable[T], context: Context) -> T:
    try:
        return await call
    except ChironError as error:
        return await abort(context, error)


async def _refuse(context: Context) -> NoReturn:
    text = "only the node's agent may call this, on the worker's control socket"
    await abort(context, ChironError(Reason.NOT_CONTROL_SOCKET, text))
