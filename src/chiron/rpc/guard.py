"""Lets a check of the caller run before each call of a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from inspect import isasyncgenfunction
from typing import Any

import grpc

from chiron.rpc.errors import ChironError, abort

Context = grpc.aio.ServicerContext[Any, Any]
_FIRST_MESSAGE_S = 1.0
Check = Callable[[Context], None]
"""Raises ChironError for a caller who may not."""


class Guard(grpc.aio.ServerInterceptor):
    """Checks callers by the called method's full name, or else its service's; what has no check is open."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        """Takes checks by `/package.Service/Method` or `/package.Service/`."""
        self._checks = dict(checks)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        check = self._checks.get(method) or self._checks.get(method.rpartition("/")[0] + "/")
        if handler is None or check is None:
            return handler
        return _wrapped(handler, check)


def _wrapped(handler: Any, check: Check) -> grpc.RpcMethodHandler[Any, Any]:
    inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    streams = bool(handler.request_streaming)
    behaviour = (
        _stream(inner, check, streams) if isasyncgenfunction(inner) else _single(inner, check, streams)
    )
    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _single(inner: Any, check: Check, streams: bool) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        await _run(check, context, request if streams else None)
        return await inner(request, context)

    return call


def _stream(inner: Any, check: Check, streams: bool) -> Callable[[Any, Context], AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        await _run(check, context, request if streams else None)
        async with aclosing(inner(request, context)) as messages:
            async for message in messages:
                yield message

    return call


async def hear_out(messages: AsyncIterator[Any]) -> None:
    """Waits for the first message of a stream that is to be refused, as its caller may be writing it.

    gRPC tells a writer that is cut off nothing but that it was.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_FIRST_MESSAGE_S):
            await anext(messages, None)


async def _run(check: Check, context: Context, messages: AsyncIterator[Any] | None) -> None:
    """Ends the call of one who may not."""
    try:
        check(context)
    except ChironError as error:
        if messages is not None:
            await hear_out(messages)
        await abort(context, error)
