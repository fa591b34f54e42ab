"""InferenceService at the router: decodes and checks a call once, counts it, maps its errors."""

from __future__ import annotations

import asyncio
import uuid
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError

from chiron.policy.dispatch import RequestClass
from chiron.requests.validation import check_generate, check_route
from chiron.rpc.errors import ChironError, Reason, abort, reason_of
from chiron.v1 import inference_pb2 as pb
from services.router.demand import ModelCounts
from services.router.placer import Placer
from services.router.proxy import Proxy, WorkerStatusError
from services.router.request import PendingRequest, estimated_prompt_tokens, request_class
from services.router.route import Lookaside
from services.router.spans import RequestTrace

SERVICE = "chiron.v1.InferenceService"
Context = grpc.aio.ServicerContext[bytes, bytes]
_Message = TypeVar("_Message", pb.GenerateRequest, pb.RouteRequest)
_REFUSED = (Reason.QUEUE_FULL, Reason.NO_INSTANCE, Reason.MODEL_NOT_FOUND, Reason.ADAPTER_NOT_FOUND)


class InferenceServicer:
    """The router's door. `handler` registers it without any (de)serialiser."""

    def __init__(self, placer: Placer, proxy: Proxy, lookaside: Lookaside, *, tracing: bool) -> None:
        self._placer = placer
        self._proxy = proxy
        self._lookaside = lookaside
        self._tracing = tracing
        self._time = asyncio.get_running_loop().time
        self._running = 0
        self._refusing: ChironError | None = None
        self.idle = asyncio.Event()
        """Set while no call runs."""
        self.idle.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """The RPC handlers; requests and responses are bytes."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Generate": grpc.unary_stream_rpc_method_handler(self.generate),
                "Route": grpc.unary_unary_rpc_method_handler(self.route),
            },
        )

    def refuse(self, error: ChironError) -> None:
        """From now on every new call gets this error."""
        self._refusing = error

    async def generate(self, wire: bytes, context: Context) -> None:
        """Proxies one stream."""
        arrived = self._time()
        trace = RequestTrace(self._tracing, f"{SERVICE}/Generate", context.invocation_metadata())
        self._enter()
        counts: ModelCounts | None = None
        kind = RequestClass.INTERACTIVE
        try:
            message = _decode(pb.GenerateRequest, wire)
            violations = check_generate(message)
            if violations:
                raise ChironError.invalid(violations)
            request = PendingRequest(
                request_id=message.request_id or uuid.uuid4().hex,
                model=message.model,
                request_class=request_class(message.request_class),
                arrived=arrived,
                priority=message.priority,
                prompt_tokens=estimated_prompt_tokens(message),
                adapter=message.adapter,
            )
            counts, kind = self._arrive(request, message.attempt, trace), request.request_class
            await self._proxy.run(wire, message, request, context, trace)
            if counts is not None:
                counts.finished.add(kind)
        except ChironError as error:
            await _refuse(error, context, counts, kind, trace)
        except WorkerStatusError as error:
            if counts is not None:
                counts.failed.add(kind)
            await _pass_on(error.error, context, trace)
        finally:
            self._leave()
            trace.end()

    async def route(self, wire: bytes, context: Context) -> bytes:
        """Answers one Route call."""
        arrived = self._time()
        trace = RequestTrace(self._tracing, f"{SERVICE}/Route", context.invocation_metadata())
        self._enter()
        counts: ModelCounts | None = None
        kind = RequestClass.INTERACTIVE
        try:
            message = _decode(pb.RouteRequest, wire)
            violations = check_route(message)
            if violations:
                raise ChironError.invalid(violations)
            request = PendingRequest(
                request_id=message.request_id or uuid.uuid4().hex,
                model=message.model,
                request_class=request_class(message.request_class),
                arrived=arrived,
                priority=message.priority,
                prompt_tokens=message.prompt_tokens,
                adapter=message.adapter,
                lookaside=True,
                excluded_ids=message.excluded_instance_ids,
            )
            counts, kind = self._arrive(request, message.attempt, trace), request.request_class
            return await self._lookaside.run(message, request, context, trace)
        except ChironError as error:
            return await _refuse(error, context, counts, kind, trace)
        finally:
            self._leave()
            trace.end()

    def _arrive(self, request: PendingRequest, attempt: int, trace: RequestTrace) -> ModelCounts | None:
        trace.request(request)
        if self._refusing is not None:
            raise self._refusing
        if self._placer.model(request.model) is None:
            # The placer refuses it; names that nobody applied are not counted.
            return None
        counts = self._placer.demand.of(request.model)
        if attempt == 0:
            counts.arrived.add(request.request_class)
        return counts

    def _enter(self) -> None:
        self._running += 1
        self.idle.clear()

    def _leave(self) -> None:
        self._running -= 1
        if self._running == 0:
            self.idle.set()


def _decode(kind: type[_Message], wire: bytes) -> _Message:
    try:
        return kind.FromString(wire)
    except DecodeError as error:
        raise ChironError(Reason.INVALID_ARGUMENT, f"not a {kind.DESCRIPTOR.full_name}: {error}") from error


async def _refuse(
    error: ChironError, context: Context, counts: ModelCounts | None, kind: RequestClass, trace: RequestTrace
) -> NoReturn:
    trace.refused(error)
    if counts is not None:
        (counts.refused if error.reason in _REFUSED else counts.failed).add(kind)
    await abort(context, error)  # type: ignore[arg-type]


async def _pass_on(error: grpc.aio.AioRpcError, context: Context, trace: RequestTrace) -> NoReturn:
    """Ends the call with the worker's status, details included."""
    trace.error(reason_of(error) or error.code().name, error.details() or "")
    details = tuple(
        (key, value) for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"
    )
    await context.abort(error.code(), error.details() or "", details)
    raise AssertionError("context.abort raises")
