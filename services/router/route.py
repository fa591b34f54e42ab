"""Route: the same queue and placement as Generate, answered by a ticket instead of a stream."""

from __future__ import annotations

import asyncio

from chiron.v1 import inference_pb2 as pb
from services.router.placer import Placer
from services.router.request import PendingRequest
from services.router.spans import RequestTrace
from services.router.telling import Tell


class Lookaside:
    """Hands out tickets."""

    def __init__(self, ticket_ttl_s: float, placer: Placer) -> None:
        self._ttl_ms = round(ticket_ttl_s * 1000)
        self._placer = placer
        self._time = asyncio.get_running_loop().time

    async def run(
        self,
        message: pb.RouteRequest,
        request: PendingRequest,
        remaining_s: float | None,
        trace: RequestTrace,
        tell: Tell | None = None,
    ) -> pb.RouteResponse:
        """The answer; `tell` is told what the request waits for. Raises ChironError when refused.

        It waits no longer than `remaining_s` seconds; None: the call has no deadline.
        """
        placement = await self._placer.place(request, remaining_s, tell)
        self._placer.access.hand_out(request, placement)
        queued_s = self._time() - request.arrived
        trace.placed(placement, message.attempt, queued_s)
        ticket = self._placer.tickets.issue(
            request,
            placement,
            attempt=message.attempt,
            slo=request.slo,
            elapsed_ms=message.elapsed_ms + queued_s * 1000,
            now=self._time(),
        )
        return pb.RouteResponse(
            instance_id=placement.instance_id,
            incarnation=placement.incarnation,
            address=placement.address,
            ticket=ticket,
            ticket_ttl_ms=self._ttl_ms,
            queued_ms=queued_s * 1000,
            request_id=request.request_id,
            spec_version=placement.spec_version,
        )
