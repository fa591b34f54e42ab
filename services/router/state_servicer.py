"""RouterService: what the router tells of itself to callers on its own host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from chiron.internal.v1 import router_pb2, router_pb2_grpc
from chiron.rpc.errors import ChironError, Reason, abort
from services.router.batch.runner import BatchRunner
from services.router.placer import Placer
from services.router.retries import Retries
from services.router.serving import Serving
from services.router.streams import Streams

SERVICE = "chiron.internal.v1.RouterService"
Context = grpc.aio.ServicerContext[Any, Any]
_OWN_HOST = ("ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:")
"""How gRPC writes callers on the same host."""


class StateServicer(router_pb2_grpc.RouterServiceServicer):
    """Reads only; a figure is taken when it is asked for."""

    def __init__(
        self,
        router_id: str,
        placer: Placer,
        serving: Serving,
        streams: Streams,
        retries: Retries,
        batch: Callable[[], BatchRunner | None],
    ) -> None:
        """Parts of the router; `batch` tells who works on the queue, where anybody does."""
        self._router_id = router_id
        self._placer = placer
        self._serving = serving
        self._streams = streams
        self._retries = retries
        self._batch = batch

    async def GetRouterState(
        self, request: router_pb2.GetRouterStateRequest, context: Context
    ) -> router_pb2.GetRouterStateResponse:
        """The table, the instances and how much is held."""
        if not context.peer().startswith(_OWN_HOST):
            await abort(
                context, ChironError(Reason.NOT_LOCAL, "only callers on the router's own host may ask")
            )
        counts = self._placer.counts()
        counts.calls, counts.streams = self._serving.under_way.count, len(self._streams)
        counts.retries = self._retries.budget.spent
        counts.retries_refused = self._retries.budget.refused
        counts.turned_away = self._placer.door.turned_away
        batch = self._batch()
        return router_pb2.GetRouterStateResponse(
            router_id=self._router_id,
            table=self._placer.table_state(),
            counts=counts,
            instances=self._placer.instances(),
            queues=self._placer.queues(),
            prefixes=self._placer.prefixes(),
            batch_queue=None if batch is None else batch.state(),
        )
