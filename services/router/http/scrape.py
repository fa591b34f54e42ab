"""`/metrics`: for Prometheus."""

from __future__ import annotations

import asyncio

from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from chiron.auth.credentials import Credentials
from chiron.rpc.errors import ChironError, Reason
from services.router.http.door import HttpDoor
from services.router.http.exchange import exchange_of


def routes(door: HttpDoor) -> list[BaseRoute]:
    """Answers administrators; where nobody is asked who calls, or it is configured so, everybody."""

    async def metrics(request: Request) -> Response:
        credentials = Credentials.of(exchange_of(request).caller)
        if not door.settings.open_metrics and not door.placer.access.is_admin(credentials):
            text = "metrics are for administrators ([router.http] open_metrics)"
            if not (credentials.api_key or credentials.subjects):
                text += ": send the API key of one in the header `authorization: Bearer KEY`"
                raise ChironError(Reason.CREDENTIALS_MISSING, text)
            raise ChironError(Reason.NOT_ALLOWED, text)
        door.metrics.look()
        encode, media = choose_encoder(request.headers.get("accept", ""))
        # Off the loop: with many models the text takes longer than the time between two tokens.
        return Response(await asyncio.to_thread(encode, door.metrics.registry), media_type=media)

    return [Route("/metrics", metrics)]
