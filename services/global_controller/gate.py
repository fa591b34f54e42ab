"""Lets calls through to a controller that leads, and translates what ends its reign or stops its writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from chiron.rpc.errors import ChironError, Reason, abort
from chiron.rpc.guard import hear_out
from chiron.store import FencedError, RefusedError, TooLargeError, UnavailableError
from services.global_controller.seat import Seat

Handler = Any
Context = grpc.aio.ServicerContext[Any, Any]
_RETRY_S = 2.0


class Gate(grpc.aio.ServerInterceptor):
    """For the services named; health and reflection pass."""

    def __init__(self, seat: Seat, services: tuple[str, ...]) -> None:
        """Asks `seat` who leads, for each call to one of `services`."""
        self._seat = seat
        self._prefixes = tuple(f"/{name}/" for name in services)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """grpc's hook."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefixes):
            return handler
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary), **serializers)
        if handler.unary_stream is not None:
            told = self._stream(handler.unary_stream, writes=False)
            return grpc.unary_stream_rpc_method_handler(told, **serializers)
        told = self._stream(handler.stream_stream, writes=True)
        return grpc.stream_stream_rpc_method_handler(told, **serializers)

    def _unary(
        self, inner: Callable[[Any, Context], Awaitable[Any]]
    ) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:
            try:
                self._seat.leading()
                return await inner(request, context)
            except Exception as error:
                await abort(context, self._told(error))

        return call

    def _stream(
        self, inner: Callable[[Any, Context], AsyncGenerator[Any]], *, writes: bool
    ) -> Callable[[Any, Context], AsyncGenerator[Any]]:
        async def call(requests: Any, context: Context) -> AsyncGenerator[Any]:
            try:
                reigning = self._seat.controller
                if reigning is None:
                    if writes:
                        await hear_out(requests)
                    raise self._seat.refusal()
                async with aclosing(inner(requests, context)) as messages:
                    async for message in messages:
                        yield message
                if self._seat.controller is not reigning:
                    raise self._seat.refusal()
            except Exception as error:
                await abort(context, self._told(error))

        return call

    def _told(self, error: Exception) -> ChironError:
        """What the caller is told. Raises an error again that is no outcome of leadership or store."""
        match error:
            case ChironError():
                return error
            case FencedError():
                return self._seat.refusal()
            case TooLargeError():
                return ChironError.invalid([("spec", f"is larger than the store takes: {error}")])
            case UnavailableError() | RefusedError():
                return ChironError(
                    Reason.STORE_UNAVAILABLE, f"nothing can be changed now: {error}", retry_after_s=_RETRY_S
                )
        raise error
