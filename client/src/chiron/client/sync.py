"""The synchronous client: the asynchronous one on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack

from chiron.client.batch.sync import SyncBatches
from chiron.client.client import Client, Stream
from chiron.client.errors import Cancelled, ClientClosed
from chiron.client.loop_thread import LoopThread
from chiron.client.options import RequestOptions
from chiron.client.output import Chunk, Completion
from chiron.client.security import TlsConfig
from chiron.client.stats import ClientStats


class SyncClient:
    """The blocking twin of Client, with the same arguments; safe to use from several threads.

    It belongs to the process that made it: a forked one must make its own, and fork before gRPC is used.
    Beside another event loop that uses gRPC, grpcio before 1.80 logs a harmless BlockingIOError now and then.

    Example:
        ```python
        with SyncClient("127.0.0.1:50051") as client:
            for chunk in client.generate(model="toy", prompt="Tell me a story.", max_tokens=8):
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
        """Makes a client and starts its thread; arguments and errors are those of Client."""
        self._client = Client(
            routers,
            lookaside=lookaside,
            tls=tls,
            api_key=api_key,
            insecure_ok=insecure_ok,
            timeout_s=timeout_s,
            silence_s=silence_s,
            connect_timeout_s=connect_timeout_s,
            max_attempts=max_attempts,
            max_resumes=max_resumes,
            fallback_memory_s=fallback_memory_s,
            router_avoid_s=router_avoid_s,
            router_wait_s=router_wait_s,
            max_worker_channels=max_worker_channels,
            batch_patience_s=batch_patience_s,
            metadata=metadata,
        )
        self._loop = LoopThread(self._client.close)
        self._finalizer = weakref.finalize(self, self._loop.stop)
        self.batch = SyncBatches(self._client.batch, self._loop)
        """Work that may take until a deadline."""

    @property
    def stats(self) -> ClientStats:
        """Counts of requests, retries and fall-backs; live."""
        return self._client.stats

    def generate(self, **options: Unpack[RequestOptions]) -> SyncStream:
        """As Client.generate; the stream is an ordinary iterator.

        Example:
            ```python
            with SyncClient("127.0.0.1:50051") as client:
                with client.generate(model="toy", prompt_token_ids=[1, 2, 3], max_tokens=8) as stream:
                    for chunk in stream:
                        print(chunk.token_ids)
            ```
        """
        return SyncStream(self._client.generate(**options), self._loop, self)

    def complete(self, **options: Unpack[RequestOptions]) -> Completion:
        """As Client.complete.

        Example:
            ```python
            with SyncClient("127.0.0.1:50051") as client:
                print(client.complete(model="toy", prompt="Say hello.", max_tokens=8).text)
            ```
        """
        return self._loop.run(self._client.complete(**options))

    def close(self) -> None:
        """Ends the requests that still run with ClientClosed, closes every connection and ends the thread."""
        self._finalizer()

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class SyncStream:
    """The chunks of one request, as an iterator; `with` or `close()` cancels what is left of it."""

    def __init__(self, stream: Stream, loop: LoopThread, client: SyncClient) -> None:
        self._stream = stream
        # A client that nobody else refers to must live as long as its stream.
        self._client = client
        self._loop = loop
        self._reader: asyncio.Task[Any] | None = None
        """On the loop, while a thread waits for a chunk."""
        self._closing = False
        self.request_id = stream.request_id
        """The id that servers know the request by."""

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Chunk:
        """The next chunk. Raises Cancelled when another thread closes the stream meanwhile."""
        chunk = self._loop.run(self._next())
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> Chunk | None:
        """The next chunk; None at the end, because a coroutine cannot raise StopIteration."""
        if self._reader is not None:
            raise RuntimeError("another thread reads this stream")
        self._reader = asyncio.current_task()
        try:
            return await anext(self._stream, None)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            raise Cancelled("the stream was closed while it was being read", reason="CANCELLED") from None
        finally:
            self._reader = None

    def close(self) -> None:
        """Cancels what is left of the request, also while another thread reads it.

        After the client's own end there is nothing left.
        """
        try:
            self._loop.run(self._close())
        except ClientClosed:
            return

    async def _close(self) -> None:
        self._closing = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))
        await self._stream.aclose()

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
