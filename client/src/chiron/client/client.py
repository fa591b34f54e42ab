"""The asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Unpack

from chiron.client.addresses import check_routers
from chiron.client.batch.client import Batches
from chiron.client.call import Call
from chiron.client.errors import ClientClosed, InvalidRequest
from chiron.client.network import Network, Settings
from chiron.client.options import RequestOptions
from chiron.client.output import Chunk, Completion
from chiron.client.request import build_request, check_metadata
from chiron.client.security import TlsConfig, check_api_key
from chiron.client.stats import ClientStats

_FOREVER_S = 1e9


class Client:
    """Streams text from models that a Chiron cluster serves.

    By default it asks a router for an instance and then streams from that worker directly (lookaside). A
    worker that cannot be reached within `connect_timeout_s` makes it go through the router instead, and is
    remembered. Use one client for many requests, concurrent ones too, on one event loop.

    Example:
        ```python
        async with Client("127.0.0.1:50051") as client:
            async for chunk in client.generate(model="toy", prompt="Tell me a story.", max_tokens=8):
                print(chunk.text, end="")
        ```
    """

    def __init__(
        self,
        routers: str | Sequence[str],
        *,
        lookaside: bool = True,
        tls: TlsConfig | None = None,
        api_key: str = "",
        insecure_ok: bool = False,
        timeout_s: float | None = None,
        silence_s: float | None = 900.0,
        connect_timeout_s: float = 1.0,
        max_attempts: int = 4,
        max_resumes: int = 16,
        fallback_memory_s: float = 60.0,
        router_avoid_s: float = 10.0,
        router_wait_s: float = 10.0,
        max_worker_channels: int = 128,
        batch_patience_s: float = 60.0,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Makes a client; it connects with its first request.

        Args:
            routers: `host:port` of a router, or several, tried in turn.
            lookaside: stream from workers directly; False: always through the router.
            tls: encrypt connections to routers and workers; None: plain text.
            api_key: sent to routers as `authorization: Bearer`, never to workers.
            insecure_ok: let the API key travel in clear text off this host.
            timeout_s: default of the requests' `timeout_s`, in seconds; None: no limit.
            silence_s: ends a request without `timeout_s` once nothing has been heard of it for so long, in
                seconds, however long it has run; longer than routers let requests wait (`max_queue_s`).
                Requests of the class batch may stay silent. None: all may.
            connect_timeout_s: how long to wait for a connection, in seconds.
            max_attempts: how often a request is tried at most without a new token, >= 1.
            max_resumes: how often a stream that broke after a token goes on elsewhere; 0: it ends there.
            fallback_memory_s: how long an unreachable worker is remembered, in seconds.
            router_avoid_s: how long a failed router is tried last, in seconds.
            router_wait_s: how long a request waits for a router when none can be reached and one has answered
                this client before, in seconds; 0: not at all.
            max_worker_channels: connections to workers kept open while nobody uses them, >= 1.
            batch_patience_s: how long a call about batches is tried again without progress, in seconds.
            metadata: gRPC metadata for every request.

        Raises:
            InsecureTransport: `api_key` would leave this host without `tls`.
            InvalidRequest: `metadata` or `api_key` cannot travel in gRPC metadata.
            OSError: a file of `tls` cannot be read.
            ValueError: no router is given, or one that is not host:port, or a number is out of range.
        """
        addresses = (routers,) if isinstance(routers, str) else tuple(dict.fromkeys(routers))
        if not addresses or not all(addresses):
            raise ValueError("routers: at least one host:port is required")
        check_routers(addresses)
        for name, number in (("max_attempts", max_attempts), ("max_worker_channels", max_worker_channels)):
            if number < 1:
                raise ValueError(f"{name}: must be >= 1, not {number}")
        for name, least in (("max_resumes", max_resumes), ("router_wait_s", router_wait_s)):
            if least < 0:
                raise ValueError(f"{name}: must be >= 0, not {least}")
        for name, seconds in (
            ("connect_timeout_s", connect_timeout_s),
            ("timeout_s", timeout_s),
            ("silence_s", silence_s),
            ("batch_patience_s", batch_patience_s),
        ):
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name}: must be > 0, not {seconds}")
        check_api_key(api_key, addresses, encrypted=tls is not None, insecure_ok=insecure_ok)
        credentials = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._network = Network(
            Settings(
                routers=addresses,
                lookaside=lookaside,
                tls=tls,
                timeout_s=_limit(timeout_s),
                silence_s=_limit(silence_s),
                connect_timeout_s=connect_timeout_s,
                max_attempts=max_attempts,
                max_resumes=max_resumes,
                fallback_memory_s=fallback_memory_s,
                router_avoid_s=router_avoid_s,
                router_wait_s=router_wait_s,
                max_worker_channels=max_worker_channels,
                batch_patience_s=batch_patience_s,
                metadata=check_metadata(metadata or {}),
                credentials=check_metadata(credentials),
            )
        )
        self.batch = Batches(self._network)
        """Work that may take until a deadline."""

    @property
    def stats(self) -> ClientStats:
        """Counts of requests, retries and fall-backs; live."""
        return self._network.stats

    @property
    def open_worker_channels(self) -> int:
        """Connections to workers that are open now, in use or kept for later."""
        return self._network.open_worker_channels

    def generate(self, **options: Unpack[RequestOptions]) -> Stream:
        """Starts a request when the returned stream is first read. RequestOptions lists the arguments.

        Raises:
            InvalidRequest: at once, when the arguments make no request. Reading the stream raises the other
                errors of `chiron.client.errors`; a stream that breaks after its first token goes on
                elsewhere, or raises StreamInterrupted or CannotResume.

        Example:
            ```python
            async with Client("127.0.0.1:50051") as client:
                stream = client.generate(
                    model="toy",
                    messages=[Message("user", "What is the capital of France?")],
                    max_tokens=8,
                    slo=Slo(ttft_ms=1000, itl_ms=100),
                )
                async with stream:
                    async for chunk in stream:
                        print(chunk.text, end="")
                        if chunk.timing:
                            print(f"\\nfirst token after {chunk.timing.client_ttft_ms:.0f} ms")
            ```
        """
        call, request_id = self._call(options)
        return Stream(call.chunks(), request_id)

    async def complete(self, **options: Unpack[RequestOptions]) -> Completion:
        """Returns the whole answer; what breaks goes on elsewhere, from scratch where it cannot be resumed.

        Takes the arguments of `generate`. Raises InvalidRequest when they make no request, and the other
        errors of `chiron.client.errors`.

        Example:
            ```python
            async with Client(["127.0.0.1:50051"]) as client:
                answer = await client.complete(model="toy", prompt="Say hello.", max_tokens=8, timeout_s=30)
                print(answer.text, answer.usage.completion_tokens, answer.finish_reason)
            ```
        """
        call, _ = self._call(options)
        return await call.whole()

    async def close(self) -> None:
        """Ends the requests that still run with ClientClosed, and closes every connection."""
        await self._network.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _call(self, options: RequestOptions) -> tuple[Call, str]:
        if self._network.closed:
            raise ClientClosed("the client is closed")
        request = build_request(**options)
        timeout_s = options.get("timeout_s")
        if timeout_s is not None and not (isinstance(timeout_s, int | float) and timeout_s > 0):
            raise InvalidRequest.of("timeout_s", f"must be a number > 0, not {timeout_s!r}")
        call = Call(
            self._network,
            request,
            timeout_s=self._network.settings.timeout_s if timeout_s is None else _limit(timeout_s),
            metadata=check_metadata(options.get("metadata") or {}),
            traceparent=options.get("traceparent", ""),
            on_progress=options.get("on_progress"),
        )
        return call, request.request_id


def _limit(timeout_s: float | None) -> float | None:
    """The limit in seconds; None for one that nobody lives to see, which gRPC's clock cannot hold."""
    return None if timeout_s is None or timeout_s >= _FOREVER_S else timeout_s


class Stream:
    """The chunks of one request, as an asynchronous iterator.

    Leaving `async with stream:`, `aclose()` and cancelling the reading task all cancel the request on the
    worker. A stream that is merely dropped is cancelled when Python collects it.
    """

    def __init__(self, chunks: AsyncGenerator[Chunk, None], request_id: str) -> None:
        self._chunks = chunks
        self.request_id = request_id
        """The id that servers know the request by."""

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Chunk:
        return await self._chunks.__anext__()

    async def aclose(self) -> None:
        """Cancels what is left of the request."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
