"""BatchService on a real port over a real queue, without a router around it; the test ends the items."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chiron.batch import wire
from chiron.batch.contract import BatchQueue
from chiron.batch.records import BatchKey, Claim, ItemState, Limits, Outcome, Session
from chiron.batch.sqlite import SqliteBatchQueue
from chiron.internal.v1 import control_pb2
from chiron.rpc.servers import Server
from chiron.v1 import access_pb2, batch_pb2_grpc
from chiron.v1 import batch_pb2 as pb
from services.router.access import Access
from services.router.batch.servicer import SERVICE, BatchDoor, BatchServicer

DEFAULT_LIMITS = Limits()
MODELS = {
    "toy": control_pb2.RoutedModel(name="toy", adapters=["legal"]),
    "other": control_pb2.RoutedModel(name="other"),
}


class BatchService:
    """A server of BatchService; `queue` may be reached around it."""

    def __init__(self, queue: BatchQueue, limits: Limits, tenants: Iterable[access_pb2.Tenant]) -> None:
        self.queue = queue
        self.limits = limits
        self.address = ""
        self.has_table = True
        self.models = dict(MODELS)
        self._tenants = list(tenants)
        self._session: Session | None = None

    async def start(self, address: str = "127.0.0.1:0", *, closed: bool = False, **door: Any) -> None:
        """Listens; `closed`: as a router without a queue."""
        self.access = Access(required=bool(self._tenants), ticket_ttl_s=2.0)
        self.access.table.replace(self._tenants, [])
        self.servicer = BatchServicer(self.access)
        if not closed:
            self.servicer.open(
                BatchDoor(
                    self.queue,
                    self.limits,
                    self.models.get,
                    lambda batch, progress: None,
                    lambda: self.has_table,
                    **{"watch_interval_s": 0.02, **door},
                )
            )
        self._server = Server([SERVICE])
        batch_pb2_grpc.add_BatchServiceServicer_to_server(self.servicer, self._server.grpc)
        self.address = f"127.0.0.1:{self._server.bind(address)}"
        await self._server.start()

    async def crash(self) -> None:
        """Goes away at once, as a killed process does."""
        await self._server.grpc.stop(None)
        await self.servicer.close()

    async def restart(self) -> None:
        """Goes away and comes back at the same address."""
        await self.crash()
        await self.start(self.address)

    async def claim(self, batch_id: str, limit: int = 1000, *, tenant: str = "") -> list[Claim]:
        """Takes items of the model `toy` out of the queue."""
        if self._session is None:
            self._session = await self.queue.begin_session("test", 60.0)
        return list(await self.queue.claim(self._session, (tenant, batch_id), "toy", limit))

    async def finish(
        self,
        claims: Iterable[Claim],
        text: Callable[[Claim], str] = lambda claim: f"answer to {claim.custom_id}",
    ) -> None:
        """Ends items well."""
        assert self._session is not None
        outcomes = [
            Outcome(
                claim.lease,
                ItemState.SUCCEEDED,
                wire.succeeded(pb.ItemOutput(choices=[pb.ItemChoice(text=text(claim))], model="toy")),
                prompt_tokens=2,
                completion_tokens=3,
            )
            for claim in claims
        ]
        assert not await self.queue.finish(self._session, outcomes)

    async def complete(self, batch_id: str, *, tenant: str = "") -> None:
        """Ends every item of a batch well."""
        while claims := await self.claim(batch_id, tenant=tenant):
            await self.finish(claims)


@asynccontextmanager
async def batch_service(
    folder: Path,
    *,
    limits: Limits = DEFAULT_LIMITS,
    tenants: Iterable[access_pb2.Tenant] = (),
    wrap: Callable[[BatchQueue], Any] = lambda queue: queue,
    **door: Any,
) -> AsyncIterator[BatchService]:
    """Starts one on a queue in `folder` and ends it afterwards."""
    queue = await SqliteBatchQueue.open(folder / "queue.db", limits)
    service = BatchService(wrap(queue), limits, tenants)
    await service.start(**door)
    try:
        yield service
    finally:
        await service.crash()
        await queue.close()


def items(count: int, **options: Any) -> list[dict[str, Any]]:
    """Items as the SDK takes them."""
    return [{"model": "toy", "prompt": f"question {n}", "max_tokens": 4, **options} for n in range(count)]


async def kept(queue: BatchQueue, batch: BatchKey) -> list[Any]:
    """Every result of a batch, read from the queue."""
    return list(await queue.results(batch, after=0, limit=10_000_000, most_bytes=1 << 40))
