"""`SyncClient.batch`: the blocking twin of Batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Generic, Literal, TypeVar

from chiron.client.batch.client import Batches
from chiron.client.batch.items import Item
from chiron.client.batch.records import Batch, InvalidItemPolicy, ItemResult, LatePolicy, TenantUsage
from chiron.client.errors import ClientClosed
from chiron.client.loop_thread import LoopThread

T = TypeVar("T")


class SyncBatches:
    """The methods of Batches, with the same arguments; safe to use from several threads.

    Example:
        ```python
        with SyncClient("127.0.0.1:50051") as client:
            batch = client.batch.submit([{"model": "toy", "prompt": "Hello", "max_tokens": 8}], deadline_s=60)
            for result in client.batch.results(batch.batch_id, follow=True):
                print(result.index, result.state)
        ```
    """

    def __init__(self, batches: Batches, loop: LoopThread) -> None:
        self._batches = batches
        self._loop = loop

    def submit(
        self,
        items: Iterable[Item],
        *,
        deadline_s: float,
        on_late: LatePolicy | Literal["finish", "expire"] = LatePolicy.FINISH,
        on_invalid: InvalidItemPolicy | Literal["refuse", "fail"] = InvalidItemPolicy.REFUSE,
        priority: int | None = None,
        metadata: Mapping[str, str] | None = None,
        batch_id: str = "",
        count: int = 0,
        timeout_s: float | None = None,
        sent: Callable[[int], None] | None = None,
    ) -> Batch:
        """As Batches.submit; `items` is read, and `sent` called, in other threads."""
        return self._loop.run(
            self._batches.submit(
                items,
                deadline_s=deadline_s,
                on_late=on_late,
                on_invalid=on_invalid,
                priority=priority,
                metadata=metadata,
                batch_id=batch_id,
                count=count,
                timeout_s=timeout_s,
                sent=sent,
            )
        )

    def get(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """As Batches.get."""
        return self._loop.run(self._batches.get(batch_id, timeout_s=timeout_s))

    def list(
        self, *, open_only: bool = False, limit: int = 0, timeout_s: float | None = None
    ) -> SyncReading[Batch]:
        """As Batches.list."""
        return self._read(self._batches.list(open_only=open_only, limit=limit, timeout_s=timeout_s))

    def cancel(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """As Batches.cancel."""
        return self._loop.run(self._batches.cancel(batch_id, timeout_s=timeout_s))

    def delete(self, batch_id: str, *, timeout_s: float | None = None) -> None:
        """As Batches.delete."""
        self._loop.run(self._batches.delete(batch_id, timeout_s=timeout_s))

    def watch(self, batch_id: str, *, timeout_s: float | None = None) -> SyncReading[Batch]:
        """As Batches.watch."""
        return self._read(self._batches.watch(batch_id, timeout_s=timeout_s))

    def wait(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """As Batches.wait."""
        return self._loop.run(self._batches.wait(batch_id, timeout_s=timeout_s))

    def results(
        self,
        batch_id: str,
        *,
        after: int = 0,
        follow: bool = False,
        custom_id: str = "",
        timeout_s: float | None = None,
    ) -> SyncReading[ItemResult]:
        """As Batches.results."""
        return self._read(
            self._batches.results(
                batch_id, after=after, follow=follow, custom_id=custom_id, timeout_s=timeout_s
            )
        )

    def usage(self, *, timeout_s: float | None = None) -> tuple[TenantUsage, ...]:
        """As Batches.usage."""
        return self._loop.run(self._batches.usage(timeout_s=timeout_s))

    def _read(self, source: AsyncGenerator[T, None]) -> SyncReading[T]:
        return SyncReading(source, self._loop)


class SyncReading(Generic[T]):
    """What a stream brings, as an ordinary iterator; `close()` ends it before its end."""

    def __init__(self, source: AsyncGenerator[T, None], loop: LoopThread) -> None:
        self._source = source
        self._loop = loop

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        found = self._loop.run(self._next())
        if found is None:
            raise StopIteration
        return found

    async def _next(self) -> T | None:
        """The next one; None at the end, because a coroutine cannot raise StopIteration."""
        return await anext(self._source, None)

    def close(self) -> None:
        """Ends the stream; after the client's own end there is nothing left to end."""
        try:
            self._loop.run(self._source.aclose())
        except ClientClosed:
            return
