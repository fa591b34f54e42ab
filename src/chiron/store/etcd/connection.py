"""Calls to the members of one etcd cluster: one channel each, and the next member when one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import RefusedError, UnavailableError
from chiron.store.etcd.backoff import Backoff
from chiron.store.etcd.failures import is_token_refused, meaning
from chiron.store.etcd.methods import AUTHENTICATE, Method, Request, Response
from chiron.store.etcd.settings import EtcdSettings

_Metadata = tuple[tuple[str, str], ...]
_NEEDS_LEADER = ("hasleader", "true")
"""A member that loses its leader ends such a stream, instead of leaving it silent."""


class Connection:
    """Used from one event loop. Nothing is sent before the first call."""

    def __init__(self, settings: EtcdSettings) -> None:
        """Reads the TLS files; raises ValueError("tls.KEY: ...") when one cannot be read."""
        self.settings = settings
        self._channels = _channels(settings)
        self._streams: list[set[Any]] = [set() for _ in settings.endpoints]
        self._current = 0
        self._token = ""
        self._authenticating = asyncio.Lock()
        self._closed = False
        self.shown = 0
        """The newest of etcd's revisions that an answer bore, whichever member's it was."""

    @property
    def member(self) -> int:
        """Index of the endpoint that the next call goes to."""
        return self._current

    def backoff(self) -> Backoff:
        """Pauses for a loop of attempts."""
        return Backoff(self.settings.reconnect_max_s)

    async def call(
        self, method: Method[Request, Response], request: Request, *, repeatable: bool = False
    ) -> Response:
        """One answer.

        A `repeatable` call (a read) is tried at one member after the other for `patience_s`; any other is
        sent once, because a call that failed may have been carried out.

        Raises:
            UnavailableError: no member answered; `uncertain` when a call that is not repeatable may have
                been carried out.
            CompactedError, TooLargeError, RefusedError: the member's answer.
        """
        deadline = time.monotonic() + self.settings.patience_s
        backoff = self.backoff()
        while True:
            if self._closed:
                raise UnavailableError("the store is closed")
            member = self._current
            left_s = deadline - time.monotonic()
            try:
                response = await self._attempt(member, method, request, left_s)
                self.note(response)
                return response
            except grpc.aio.AioRpcError as error:
                failure = meaning(error, self.settings.endpoints[member])
            except asyncio.CancelledError:
                _raise_unless_cancelled("the store is closed")
                raise
            if not isinstance(failure, UnavailableError):
                raise failure
            if not failure.uncertain:
                raise failure
            self.failed(member)
            if not repeatable:
                raise failure
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise UnavailableError(str(failure))
            await backoff.pause(left_s)

    async def ask(self, member: int, method: Method[Request, Response], request: Request) -> Response:
        """One answer of one member, which no other call's way depends on.

        Raises UnavailableError, RefusedError and the others of `call`.
        """
        try:
            return await self._attempt(member, method, request, self.settings.attempt_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise meaning(error, self.settings.endpoints[member]) from error
        except asyncio.CancelledError:
            _raise_unless_cancelled("the store is closed")
            raise

    async def wait_for(self, method: Method[Request, Response], request: Request) -> Response:
        """One answer of the present member, however long it takes.

        Raises UnavailableError, CompactedError, TooLargeError and RefusedError.
        """
        async with aclosing(self.stream(method, request)) as answers:
            async for answer in answers:
                return answer
        raise UnavailableError("the call ended without an answer")

    async def stream(
        self, method: Method[Request, Response], requests: AsyncIterator[Request] | Request
    ) -> AsyncGenerator[Response, None]:
        """The answers of a stream at the present member, until it ends there.

        Raises UnavailableError when it breaks; a new one goes to the next member. Raises RefusedError.
        """
        member = self._current
        call: Any = None
        try:
            metadata = (*_token_metadata(await self._known_token(member)), _NEEDS_LEADER)
            kind = "stream_stream" if isinstance(requests, AsyncIterator) else "unary_stream"
            opened = getattr(self._channels[member], kind)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            call = opened(requests, metadata=metadata)
            self._streams[member].add(call)
            while (response := await call.read()) is not grpc.aio.EOF:
                yield response
            self.failed(member)
        except grpc.aio.AioRpcError as error:
            self.failed(member)
            raise meaning(error, self.settings.endpoints[member]) from error
        except asyncio.CancelledError:
            _raise_unless_cancelled(f"etcd at {self.settings.endpoints[member]} was given up")
            raise
        finally:
            if call is not None:
                self._streams[member].discard(call)
                call.cancel()

    def note(self, response: object) -> None:
        """Takes in what an answer says of etcd's revision, where it does."""
        header = getattr(response, "header", None)
        if header is not None:
            self.shown = max(self.shown, header.revision)

    def failed(self, member: int) -> None:
        """The member does not do: later calls go to the next one, and streams that it may keep silent end."""
        if len(self._channels) == 1:
            return
        if member == self._current:
            self._current = (member + 1) % len(self._channels)
        for call in list(self._streams[member]):
            call.cancel()

    def forget_token(self) -> None:
        """Authenticates anew before the next call: streams learn too late that a token has ended."""
        self._token = ""

    async def close(self) -> None:
        """Ends every call."""
        self._closed = True
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def _attempt(
        self, member: int, method: Method[Request, Response], request: Request, within_s: float
    ) -> Response:
        call: grpc.aio.UnaryUnaryMultiCallable[Request, Response] = self._channels[member].unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,  # type: ignore[arg-type]
        )
        timeout_s = max(0.001, min(self.settings.attempt_timeout_s, within_s))
        token = await self._known_token(member)
        try:
            return await call(request, timeout=timeout_s, metadata=_token_metadata(token))
        except grpc.aio.AioRpcError as error:
            if not self.settings.user or not is_token_refused(error):
                raise
            if self._token == token:
                self.forget_token()
        # The member turned the call away at its door, so that sending it again cannot do it twice.
        token = await self._known_token(member)
        return await call(request, timeout=timeout_s, metadata=_token_metadata(token))

    async def _known_token(self, member: int) -> str:
        if not self.settings.user or self._token:
            return self._token
        async with self._authenticating:
            if not self._token:
                call = self._channels[member].unary_unary(
                    AUTHENTICATE.path,
                    request_serializer=AUTHENTICATE.request.SerializeToString,
                    response_deserializer=AUTHENTICATE.response.FromString,
                )
                request = pb.AuthenticateRequest(name=self.settings.user, password=self.settings.password)
                answer = await call(request, timeout=self.settings.attempt_timeout_s)
                if not answer.token:
                    raise RefusedError(f"etcd at {self.settings.endpoints[member]} gave no token")
                self._token = answer.token
            return self._token


def _raise_unless_cancelled(reason: str) -> None:
    """gRPC tells that a call was cancelled as if the task that waits for it were. Raises UnavailableError."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        raise UnavailableError(reason, uncertain=True)


def _token_metadata(token: str) -> _Metadata:
    return (("token", token),) if token else ()


def _channels(settings: EtcdSettings) -> list[grpc.aio.Channel]:
    most_ms = max(1, int(settings.reconnect_max_s * 1000))
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", int(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        # Without it gRPC waits a minute for the answer, whatever the line above says.
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", min(100, most_ms)),
        # Not a pause: how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", most_ms),
        # A write is never sent twice without being asked for.
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if settings.tls is None:
        return [grpc.aio.insecure_channel(endpoint, options) for endpoint in settings.endpoints]
    files = {"ca": settings.tls.ca, "certificate": settings.tls.certificate, "key": settings.tls.key}
    pems: dict[str, bytes | None] = {}
    for name, path in files.items():
        try:
            pems[name] = path.read_bytes() if path is not None else None
        except OSError as error:
            raise ValueError(f"tls.{name}: cannot read {path}: {error.strerror}") from error
    credentials = grpc.ssl_channel_credentials(pems["ca"], pems["key"], pems["certificate"])
    return [grpc.aio.secure_channel(endpoint, credentials, options) for endpoint in settings.endpoints]
