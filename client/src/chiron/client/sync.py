"""The synchronous client: the asynchronous one on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

from chiron.client.client import Client, Stream
from chiron.client.errors import ClientClosed
from chiron.client.options import RequestOptions
from chiron.client.output import Chunk, Completion
from chiron.client.security import TlsConfig
from chiron.client.stats import ClientStats

T = TypeVar("T")


_LAST_WORDS_S = 2.0
"""How long requests that were cut off get to tell their callers so."""


class _LoopThread:
    """An event loop that runs in a thread until it is stopped."""

    def __init__(self, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts the thread; `at_end` is the last thing that its loop runs."""
        self._loop = asyncio.new_event_loop()
        self._at_end = at_end
        self._lock = threading.RLock()
        self._stopped = False
        self._thread = threading.Thread(target=self._serve, name="chiron-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the loop and waits for it; an interrupted wait cancels it.

        Raises ClientClosed when the loop has been stopped.
        """
        with self._lock:
            if self._stopped:
                work.close()
                raise ClientClosed("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientClosed("the client was closed during the request") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the thread and waits for its end; a second call does nothing."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        # The garbage collector may have called from the thread itself, which cannot wait for its own end.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._finish())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await self._at_end()
        if others:
            _, late = await asyncio.wait(others, timeout=_LAST_WORDS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


class SyncClient:
    """The blocking twin of Client, with the same arguments; safe to use from several threads.

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
        connect_timeout_s: float = 1.0,
        max_attempts: int = 4,
        max_resumes: int = 16,
        fallback_memory_s: float = 60.0,
        router_avoid_s: float = 10.0,
        router_wait_s: float = 10.0,
        max_worker_channels: int = 128,
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
            connect_timeout_s=connect_timeout_s,
            max_attempts=max_attempts,
            max_resumes=max_resumes,
            fallback_memory_s=fallback_memory_s,
            router_avoid_s=router_avoid_s,
            router_wait_s=router_wait_s,
            max_worker_channels=max_worker_channels,
            metadata=metadata,
        )
        self._loop = _LoopThread(self._client.close)
        self._finalizer = weakref.finalize(self, self._loop.stop)

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

    def __init__(self, stream: Stream, loop: _LoopThread, client: SyncClient) -> None:
        self._stream = stream
        # A client that nobody else refers to must live as long as its stream.
        self._client = client
        self._loop = loop
        self.request_id = stream.request_id
        """The id that servers know the request by."""

    def __iter__(self) -> SyncStream:
        return self

    def __next__(self) -> Chunk:
        chunk = self._loop.run(self._next())
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next(self) -> Chunk | None:
        """The next chunk; None at the end, because a coroutine cannot raise StopIteration."""
        return await anext(self._stream, None)

    def close(self) -> None:
        """Cancels what is left of the request; after the client's own end there is nothing left."""
        try:
            self._loop.run(self._stream.aclose())
        except ClientClosed:
            return

    def __enter__(self) -> SyncStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
