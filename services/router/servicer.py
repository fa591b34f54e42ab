"""InferenceService at the router: decodes and checks a call once, counts it, maps its errors."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import NoReturn

import grpc

from chiron.client.prefix import prefix_hashes
from chiron.client.request import estimate_prompt_tokens
from chiron.policy.words import RequestClass
from chiron.requests.prefixes import salted
from chiron.requests.validation import check_generate, check_route
from chiron.rpc.errors import ChironError, Prepared, Reason, abort, reason_of
from chiron.rpc.reading import read
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.access import leave
from services.router.demand import Tally
from services.router.outcomes import missed
from services.router.placer import Placer
from services.router.proxy import Proxy, WorkerStatusError
from services.router.request import PendingRequest, request_class
from services.router.route import Lookaside
from services.router.spans import RequestTrace
from services.router.telling import Tell

SERVICE = "chiron.v1.InferenceService"
Context = grpc.aio.ServicerContext[bytes, bytes]
_NO_REQUEST = Prepared(ChironError(Reason.INVALID_ARGUMENT, "the call has no request"))
_REFUSED = (
    Reason.QUEUE_FULL,
    Reason.SLO_OUT_OF_REACH,
    Reason.NO_INSTANCE,
    Reason.MODEL_NOT_FOUND,
    Reason.ADAPTER_NOT_FOUND,
)


class InferenceServicer:
    """The router's door. `handler` registers it without any (de)serialiser."""

    def __init__(self, placer: Placer, proxy: Proxy, lookaside: Lookaside, *, tracing: bool) -> None:
        self._placer = placer
        self._door = placer.door
        self._proxy = proxy
        self._lookaside = lookaside
        self._tracing = tracing
        self._time = asyncio.get_running_loop().time
        self._running = 0
        self._refusing = ""
        self.idle = asyncio.Event()
        """Set while no call runs."""
        self.idle.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """The RPC handlers; requests and responses are bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                # As streams of requests, so that a call is seen before its one request is read.
                "Generate": grpc.stream_stream_rpc_method_handler(self.generate),
                "Route": grpc.stream_unary_rpc_method_handler(self.route),
                "WatchRoute": grpc.stream_stream_rpc_method_handler(self.watch_route),
            },
        )

    @property
    def running(self) -> int:
        """Calls under way."""
        return self._running

    def refuse(self, why: str) -> None:
        """From now on every new call is sent to another router."""
        self._refusing = why

    async def generate(self, _: object, context: Context) -> None:
        """Proxies one stream."""
        arrived = self._time()
        await self._door.admit(context)
        try:
            await self._generate(arrived, context)
        except asyncio.CancelledError:
            self._door.cancelled(context, arrived)
            raise

    async def route(self, _: object, context: Context) -> bytes:
        """Answers one Route call."""
        arrived = self._time()
        await self._door.admit(context)
        try:
            return (await self._route(arrived, context, _route_request)).SerializeToString()
        except asyncio.CancelledError:
            self._door.cancelled(context, arrived)
            raise

    async def watch_route(self, _: object, context: Context) -> None:
        """Answers one WatchRoute call."""
        arrived = self._time()
        await self._door.admit(context)

        async def tell(progress: pb.Progress) -> None:
            await _write(context, pb.WatchRouteResponse(progress=progress))

        try:
            route = await self._route(arrived, context, _watched_request, tell)
            await _write(context, pb.WatchRouteResponse(route=route))
        except asyncio.CancelledError:
            self._door.cancelled(context, arrived)
            raise

    async def _generate(self, arrived: float, context: Context) -> None:
        trace = RequestTrace(self._tracing, f"{SERVICE}/Generate", context.invocation_metadata())
        self._enter()
        tally: Tally | None = None
        request: PendingRequest | None = None
        try:
            tenant = self._placer.access.identify(context)
            wire = await _received(context)
            message = read(pb.GenerateRequest, wire)
            violations = check_generate(message)
            if violations:
                raise ChironError.invalid(violations)
            request = self._pending(message, arrived, estimate_prompt_tokens(message))
            request.max_tokens, request.choices = message.sampling.max_tokens, max(1, message.sampling.n)
            if message.resume.delivered_token_ids:
                resumed = message.resume
                request.resume(resumed.origin.spec_version, arrived, len(resumed.delivered_token_ids))
                request.handed_back = _batch(request) and resumed.origin.preemptions > 0
            self._placer.access.admit(tenant, request)
            if self._placer.prefix_affinity:
                request.prefixes = salted(request.tenant, prefix_hashes(message))
            tally = self._arrive(request, message.attempt, trace)
            await self._proxy.run(wire, message, request, context, trace, tell_progress=message.tell_progress)
            if tally is not None:
                tally.finished()
        except asyncio.CancelledError:
            self._record_end(request, "cancelled")
            raise
        except ChironError as error:
            self._record_end(request, "refused" if error.reason in _REFUSED else "failed", error.reason.name)
            await _refuse(error, context, tally, trace)
        except WorkerStatusError as error:
            self._record_end(request, "failed", reason_of(error.error) or error.error.code().name)
            if tally is not None:
                # What a worker gives a reason for, it has counted itself.
                tally.failed(missed=not reason_of(error.error))
            await _pass_on(error.error, context, trace)
        finally:
            leave(request)
            self._leave()
            trace.end()

    async def _route(
        self,
        arrived: float,
        context: Context,
        decode: Callable[[bytes], pb.RouteRequest],
        tell: Tell | None = None,
    ) -> pb.RouteResponse:
        method = "Route" if tell is None else "WatchRoute"
        trace = RequestTrace(self._tracing, f"{SERVICE}/{method}", context.invocation_metadata())
        self._enter()
        tally: Tally | None = None
        request: PendingRequest | None = None
        try:
            tenant = self._placer.access.identify(context)
            message = decode(await _received(context))
            violations = check_route(message)
            if violations:
                raise ChironError.invalid(violations)
            request = self._pending(message, arrived, message.prompt_tokens)
            request.lookaside, request.opener = True, self._door.opener(context)
            request.max_tokens, request.choices = message.max_tokens, max(1, message.choices)
            if message.spec_version:
                request.resume(message.spec_version, arrived)
            request.handed_back = _batch(request) and message.handed_back
            request.excluded_ids = message.excluded_instance_ids
            self._placer.access.admit(tenant, request)
            if self._placer.prefix_affinity:
                request.prefixes = salted(request.tenant, message.prefix_hashes)
            tally = self._arrive(request, message.attempt, trace)
            return await self._lookaside.run(message, request, context, trace, tell)
        except asyncio.CancelledError:
            self._record_end(request, "cancelled")
            raise
        except ChironError as error:
            self._record_end(request, "refused" if error.reason in _REFUSED else "failed", error.reason.name)
            return await _refuse(error, context, tally, trace)
        finally:
            leave(request)
            self._leave()
            trace.end()

    def _record_end(self, request: PendingRequest | None, end: str, reason: str = "") -> None:
        if self._placer.book is not None and request is not None:
            self._placer.book.gave_up(request.request_id, end, reason)

    def _pending(
        self, message: pb.GenerateRequest | pb.RouteRequest, arrived: float, prompt_tokens: int
    ) -> PendingRequest:
        kind = request_class(message.request_class)
        slo = types_pb2.Slo()
        if (routed := self._placer.model(message.model)) is not None:
            defaults = routed.slo_defaults
            slo.CopyFrom(defaults.batch if kind is RequestClass.BATCH else defaults.interactive)
        slo.MergeFrom(message.slo)
        return PendingRequest(
            request_id=message.request_id or uuid.uuid4().hex,
            model=message.model,
            request_class=kind,
            arrived=arrived,
            priority=message.priority,
            prompt_tokens=prompt_tokens,
            adapter=message.adapter,
            slo=slo,
            elapsed_s=message.elapsed_ms / 1000,
            refuse_if_late=slo.refuse_if_late
            if slo.HasField("refuse_if_late")
            else self._placer.refuse_if_late,
            deadline=arrived + slo.deadline_s - message.elapsed_ms / 1000 if slo.deadline_s > 0 else None,
        )

    def _arrive(self, request: PendingRequest, attempt: int, trace: RequestTrace) -> Tally | None:
        trace.request(request)
        # The placer refuses unknown names; they are not counted.
        known = self._placer.model(request.model) is not None
        tally = self._placer.demand.tally(request.model, request.request_class, slo=request.promised)
        if known and attempt == 0 and not self._placer.has_ticket(request.request_id):
            # Whoever cannot use a ticket comes again under the same attempt.
            tally.arrived()
        book = self._placer.book
        if book is not None and known:
            book.begin(request, attempt)
        if self._refusing:
            # Another router will say how it ended, but not that it came: there it is a retry.
            raise ChironError(Reason.RETRY_ELSEWHERE, self._refusing)
        return tally if known else None

    def _enter(self) -> None:
        self._running += 1
        self.idle.clear()

    def _leave(self) -> None:
        self._running -= 1
        if self._running == 0:
            self.idle.set()


def _route_request(wire: bytes) -> pb.RouteRequest:
    return read(pb.RouteRequest, wire)


def _watched_request(wire: bytes) -> pb.RouteRequest:
    return read(pb.WatchRouteRequest, wire).request


async def _write(context: Context, message: pb.WatchRouteResponse) -> None:
    try:
        await context.write(message.SerializeToString())
    except Exception as error:
        # A write fails only when the caller has gone, sometimes before the cancellation is told.
        raise asyncio.CancelledError from error


async def _received(context: Context) -> bytes:
    wire: object = await context.read()
    if not isinstance(wire, bytes):
        await _NO_REQUEST.abort(context)
    return wire


async def _refuse(error: ChironError, context: Context, tally: Tally | None, trace: RequestTrace) -> NoReturn:
    trace.refused(error)
    if tally is not None:
        if error.reason in _REFUSED:
            tally.refused(missed=missed(error.reason))
        else:
            tally.failed(missed=missed(error.reason))
    await abort(context, error)  # type: ignore[arg-type]


async def _pass_on(error: grpc.aio.AioRpcError, context: Context, trace: RequestTrace) -> NoReturn:
    """Ends the call with the worker's status, details included."""
    trace.error(reason_of(error) or error.code().name, error.details() or "")
    details = tuple(
        (key, value) for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"
    )
    await context.abort(error.code(), error.details() or "", details)
    raise AssertionError("context.abort raises")


def _batch(request: PendingRequest) -> bool:
    return request.request_class is RequestClass.BATCH
