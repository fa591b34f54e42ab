"""Stands between a client and a real etcd member, sees each message, and loses what a test wants lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.etcd.methods import LEASE_KEEP_ALIVE, TXN, WATCH


class Fate(Enum):
    """What becomes of a call."""

    PASS = auto()
    LOSE_REQUEST = auto()
    """etcd never sees it, and the client gets no answer."""
    LOSE_ANSWER = auto()
    """etcd carries it out, and the client gets no answer."""


class EtcdProxy(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Passes everything on until told otherwise."""

    def __init__(self, target: str) -> None:
        self.calls: Counter[str] = Counter()
        """Calls and streams by path."""
        self.fate: Callable[[str, bytes], Fate] = lambda path, request: Fate.PASS
        self.hold: Callable[[str, bytes], Any] = lambda path, request: None
        """Gives what to wait for before a call is passed on, or None."""
        self.see_watch: Callable[[pb.WatchResponse], bool] = lambda response: True
        """May change a response; False cuts the stream before it."""
        self.cut_after = False
        """Cuts the stream after the present response; `see_watch` sets it."""
        self.silent = False
        """No message of a stream gets through."""
        self.endpoint = ""
        self._target = target

    async def __aenter__(self) -> EtcdProxy:
        self._channel = grpc.aio.insecure_channel(self._target)
        # Clients in tests ask often whether the connection lives.
        self._server = grpc.aio.server(
            options=[
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 100),
                ("grpc.keepalive_permit_without_calls", 1),
            ]
        )
        self._server.add_generic_rpc_handlers((self,))
        self.endpoint = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(None)
        await self._channel.close()

    def service(self, handler_call_details: Any) -> Any:
        """grpc's way to ask for a handler."""
        path = handler_call_details.method
        if path in (WATCH.path, LEASE_KEEP_ALIVE.path):
            return grpc.stream_stream_rpc_method_handler(partial(self._stream, path))
        return grpc.unary_unary_rpc_method_handler(partial(self._unary, path))

    async def _unary(self, path: str, request: bytes, context: Any) -> bytes:
        self.calls[path] += 1
        fate = self.fate(path, request)
        if (held := self.hold(path, request)) is not None:
            await held
        answer = b""
        if fate is not Fate.LOSE_REQUEST:
            try:
                answer = await self._channel.unary_unary(path)(request, metadata=_token(context))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")
        if fate is not Fate.PASS:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way")
        return answer

    async def _stream(self, path: str, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.calls[path] += 1
        call = self._channel.stream_stream(path)(self._passing(requests), metadata=_token(context))
        try:
            while (message := await call.read()) is not grpc.aio.EOF:
                if self.silent:
                    await asyncio.Event().wait()
                if path == WATCH.path:
                    response = pb.WatchResponse.FromString(message)
                    if not self.see_watch(response):
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                    message = response.SerializeToString()
                yield message
                if self.cut_after:
                    self.cut_after = False
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            call.cancel()

    async def _passing(self, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for request in requests:
            if self.silent:
                await asyncio.Event().wait()
            yield request


def writes(path: str, request: bytes) -> bool:
    """True for a transaction that puts or deletes."""
    operations = pb.TxnRequest.FromString(request).success if path == TXN.path else ()
    return any(one.WhichOneof("request") != "request_range" for one in operations)


def _token(context: Any) -> list[tuple[str, str]]:
    return [(key, value) for key, value in context.invocation_metadata() if key == "token"]
