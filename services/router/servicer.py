"""InferenceService at the router: reads each call once, and puts what comes of it into gRPC's words."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc

from chiron.rpc.errors import ChironError, Prepared, Reason, abort
from chiron.rpc.reading import read
from chiron.v1 import inference_pb2 as pb
from services.router.door import Door, turned_away
from services.router.proxy import WorkerStatusError
from services.router.serving import Serving

SERVICE = "chiron.v1.InferenceService"
Context = grpc.aio.ServicerContext[bytes, bytes]
_NO_REQUEST = Prepared(ChironError(Reason.INVALID_ARGUMENT, "the call has no request"))


class InferenceServicer:
    """The gRPC door. `handler` registers it without any (de)serialiser."""

    def __init__(self, serving: Serving, door: Door) -> None:
        self._serving = serving
        self._door = door
        self._time = asyncio.get_running_loop().time
        self._answers: dict[float, Prepared] = {}

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

    async def generate(self, _: object, context: Context) -> None:
        """Proxies one stream."""
        arrived = self._time()
        await self._admit(context)
        with self._serving.under_way:
            try:
                with self._serving.call(context, f"{SERVICE}/Generate", arrived) as call:
                    wire = await _received(context)
                    await call.generate(wire, read(pb.GenerateRequest, wire), context)
            except (ChironError, WorkerStatusError, asyncio.CancelledError) as error:
                await self._end(error, context, arrived)

    async def route(self, _: object, context: Context) -> bytes:
        """Answers one Route call."""
        arrived = self._time()
        await self._admit(context)
        with self._serving.under_way:
            try:
                with self._serving.call(context, f"{SERVICE}/Route", arrived) as call:
                    message = read(pb.RouteRequest, await _received(context))
                    return (await call.route(message, context.time_remaining())).SerializeToString()
            except (ChironError, asyncio.CancelledError) as error:
                await self._end(error, context, arrived)

    async def watch_route(self, _: object, context: Context) -> None:
        """Answers one WatchRoute call."""
        arrived = self._time()
        await self._admit(context)

        async def tell(progress: pb.Progress) -> None:
            await _write(context, pb.WatchRouteResponse(progress=progress))

        with self._serving.under_way:
            try:
                with self._serving.call(context, f"{SERVICE}/WatchRoute", arrived) as call:
                    message = read(pb.WatchRouteRequest, await _received(context)).request
                    route = await call.route(message, context.time_remaining(), tell)
                await _write(context, pb.WatchRouteResponse(route=route))
            except (ChironError, asyncio.CancelledError) as error:
                await self._end(error, context, arrived)

    async def _admit(self, context: Context) -> None:
        """Returns, or ends the call of one who is turned away, as `abort` does."""
        pause_s = await self._door.pause_s(context)
        if not pause_s:
            return
        answer = self._answers.get(pause_s)
        if answer is None:
            answer = self._answers[pause_s] = Prepared(turned_away(pause_s))
        await answer.abort(context)

    async def _end(
        self,
        error: ChironError | WorkerStatusError | asyncio.CancelledError,
        context: Context,
        arrived: float,
    ) -> NoReturn:
        """Ends the call as it has to: with a status, or not at all where its caller has gone."""
        try:
            if isinstance(error, ChironError):
                await abort(context, error)  # type: ignore[arg-type]
            if isinstance(error, WorkerStatusError):
                await _pass_on(error.error, context)
            raise error
        except asyncio.CancelledError:
            self._door.cancelled(context, arrived)
            raise


async def _pass_on(error: grpc.aio.AioRpcError, context: Context) -> NoReturn:
    """Ends the call with the worker's status, details included."""
    details = tuple(
        (key, value) for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"
    )
    await context.abort(error.code(), error.details() or "", details)
    raise AssertionError("context.abort raises")


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
