"""Calls that show an API key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

_KEY = "authorization"


def bearer_metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """The metadata that shows the key; none for an empty one."""
    return ((_KEY, f"Bearer {api_key}"),) if api_key else ()


def showing(api_key: str) -> list[grpc.aio.ClientInterceptor]:
    """Interceptors by which every unary call of a channel shows the key; none for an empty one.

    Streams of requests are not covered: their callers pass `bearer_metadata` themselves.
    """
    return [_Unary(api_key), _UnaryStream(api_key)] if api_key else []


class _Showing:
    def __init__(self, api_key: str) -> None:
        self._metadata = bearer_metadata(api_key)

    def details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._metadata)
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _Unary(_Showing, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self.details(client_call_details), request)


class _UnaryStream(_Showing, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        return await continuation(self.details(client_call_details), request)
