"""`Client.batch`: hands in batches, watches them, reads their results."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Literal, TypeVar

from google.protobuf.message import Message

from chiron.client.batch.calls import BatchCalls, Patience
from chiron.client.batch.items import Items, check_items, grouped
from chiron.client.batch.reading import INVALID_ITEM_POLICIES, LATE_POLICIES, batch_of, usage_of
from chiron.client.batch.records import (
    Batch,
    InvalidItemPolicy,
    ItemResult,
    LatePolicy,
    TenantUsage,
)
from chiron.client.batch.results import read_results, watch_batch
from chiron.client.batch.submission import Submission
from chiron.client.errors import ChironError, ClientClosed, InvalidRequest
from chiron.client.network import Network
from chiron.client.request import fit, set_field
from chiron.v1 import batch_pb2 as pb

_PAGE = 1000
_Policy = TypeVar("_Policy", LatePolicy, InvalidItemPolicy)
_Request = TypeVar("_Request", bound=Message)


class Batches:
    """Work that may take until a deadline, kept durably by the routers that have a batch queue.

    Every call goes on trying while no router takes it, for as long as the client's `batch_patience_s` without
    getting further. Streams are taken up where they broke, at another router or after a restart.

    Example:
        ```python
        async with Client("127.0.0.1:50051") as client:
            batch = await client.batch.submit(
                [{"model": "toy", "prompt": f"Tell me of {n}.", "max_tokens": 8} for n in range(100)],
                deadline_s=3600,
            )
            async for result in client.batch.results(batch.batch_id, follow=True):
                print(result.custom_id, result.output.text if result.output else result.error)
        ```
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._calls = BatchCalls(network)

    async def submit(
        self,
        items: Items,
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
        """Hands in a batch; when this returns, every item is on disk and will be worked on.

        Args:
            items: mappings with the arguments of `generate` that say what to generate, and optionally
                `custom_id`, or MalformedItem. A list, an iterator or an asynchronous one; it is read once.
            deadline_s: time until every result is to be there, in seconds; > 0.
            on_late: what becomes of items without a result at the deadline.
            on_invalid: what becomes of the batch when an item cannot be worked on.
            priority: among the tenant's batches of similar deadlines: a lower value goes first; None: the
                key's default, else 0.
            metadata: for people and programs; at most 16 entries.
            batch_id: 1 to 128 characters of [A-Za-z0-9._:-]; a submission under the same id is the same
                submission. Empty: a new one.
            count: how many items there are, where that is known; 0: as many as a list has. Part of what makes
                two submissions the same.
            timeout_s: gives up after so many seconds; None: no limit.
            sent: told how many items have been sent so far.

        Raises:
            InvalidRequest: items or arguments are wrong, and nothing is kept; `.violations` name the items.
            BatchExists: another batch has this id.
            NoBatchQueue, BatchQueueFull, Overloaded, Unavailable: as told; after Unavailable the same
                submission may be made again under its id, which `.metadata["batch_id"]` holds.
        """
        check_items(items)
        header = pb.BatchHeader(
            late=LATE_POLICIES[_policy(LatePolicy, "on_late", on_late)],
            invalid_items=INVALID_ITEM_POLICIES[_policy(InvalidItemPolicy, "on_invalid", on_invalid)],
        )
        set_field(header, "batch_id", batch_id or f"batch-{uuid.uuid4().hex}")
        set_field(header, "deadline_s", deadline_s)
        set_field(header, "priority", priority)
        set_field(header, "items", count or (len(items) if isinstance(items, Sequence) else 0))
        fit("metadata", lambda: header.metadata.update(metadata or {}))
        submission = Submission(
            self._calls, header, grouped(items), self._begin(timeout_s), sent or (lambda number: None)
        )
        try:
            return batch_of(await submission.run())
        except ChironError as error:
            error.metadata["batch_id"] = header.batch_id
            raise

    async def get(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """A batch as it stands. Raises BatchNotFound."""
        request = _filled(pb.GetBatchRequest(), batch_id=batch_id)
        answer: pb.GetBatchResponse = await self._calls.unary(
            lambda stub, options: stub.GetBatch(request, **options), self._begin(timeout_s)
        )
        return batch_of(answer.batch)

    async def list(
        self, *, open_only: bool = False, limit: int = 0, timeout_s: float | None = None
    ) -> AsyncGenerator[Batch, None]:
        """The tenant's batches, the newest first.

        Args:
            open_only: only those that have not ended.
            limit: at most so many; 0: all.
            timeout_s: of each page.
        """
        if limit < 0:
            raise InvalidRequest.of("limit", f"must be >= 0, not {limit}")
        token, told = "", 0
        while True:
            size = min(_PAGE, limit - told) if limit else _PAGE
            request = pb.ListBatchesRequest(page_size=size, page_token=token, open=open_only)
            page = await self._page(request, timeout_s)
            for message in page.batches:
                yield batch_of(message)
            told += len(page.batches)
            token = page.next_page_token
            if not token or (limit and told >= limit):
                return

    async def _page(self, request: pb.ListBatchesRequest, timeout_s: float | None) -> pb.ListBatchesResponse:
        return await self._calls.unary(
            lambda stub, options: stub.ListBatches(request, **options), self._begin(timeout_s)
        )

    async def cancel(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """Ends a batch: what has no result gets one as cancelled. Raises BatchNotFound."""
        request = _filled(pb.CancelBatchRequest(), batch_id=batch_id)
        answer: pb.CancelBatchResponse = await self._calls.unary(
            lambda stub, options: stub.CancelBatch(request, **options), self._begin(timeout_s)
        )
        return batch_of(answer.batch)

    async def delete(self, batch_id: str, *, timeout_s: float | None = None) -> None:
        """Forgets a batch that has ended, results included, or one that was never handed in completely.

        Raises BatchNotFound, WrongBatchState.
        """
        request = _filled(pb.DeleteBatchRequest(), batch_id=batch_id)
        await self._calls.unary(
            lambda stub, options: stub.DeleteBatch(request, **options), self._begin(timeout_s)
        )

    def watch(self, batch_id: str, *, timeout_s: float | None = None) -> AsyncGenerator[Batch, None]:
        """Yields the batch now and whenever it has changed, at most once a second, until it has ended.

        Reading raises BatchNotFound, also when the batch is deleted meanwhile.
        """
        return watch_batch(self._calls, batch_id, self._begin(timeout_s))

    async def wait(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """Returns the batch when it has ended. Raises BatchNotFound."""
        async for batch in self.watch(batch_id, timeout_s=timeout_s):
            last = batch
        return last

    def results(
        self,
        batch_id: str,
        *,
        after: int = 0,
        follow: bool = False,
        custom_id: str = "",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ItemResult, None]:
        """Yields results in the order in which they were recorded, each once.

        Args:
            batch_id: of which batch.
            after: pass over results up to this `ItemResult.number`.
            follow: wait for what is still to come, until the batch has ended.
            custom_id: the result of this item alone; empty: of all.
            timeout_s: gives up after so many seconds; None: no limit.

        Reading raises BatchNotFound, also when the batch is deleted meanwhile.
        """
        request = _filled(
            pb.ReadResultsRequest(), batch_id=batch_id, after=after, follow=follow, custom_id=custom_id
        )
        return read_results(self._calls, request, self._begin(timeout_s))

    async def usage(self, *, timeout_s: float | None = None) -> tuple[TenantUsage, ...]:
        """What the caller's tenant has in the queue; to administrators, every tenant."""
        request = pb.GetBatchUsageRequest()
        answer: pb.GetBatchUsageResponse = await self._calls.unary(
            lambda stub, options: stub.GetBatchUsage(request, **options), self._begin(timeout_s)
        )
        return tuple(map(usage_of, answer.tenants))

    def _begin(self, timeout_s: float | None) -> Patience:
        if self._network.closed:
            raise ClientClosed("the client is closed")
        if timeout_s is not None and not timeout_s > 0:
            raise InvalidRequest.of("timeout_s", f"must be a number > 0, not {timeout_s!r}")
        return Patience(self._network, timeout_s)


def _filled(message: _Request, **fields: object) -> _Request:
    """A message with these fields. Raises InvalidRequest."""
    for name, value in fields.items():
        set_field(message, name, value)
    return message


def _policy(kind: type[_Policy], name: str, value: str) -> _Policy:
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(each.value for each in kind)
        raise InvalidRequest.of(name, f"must be one of {names}, not {value!r}") from error
