"""`/health`: whether this router serves, for load balancers."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from services.router.http.door import HttpDoor
from services.router.http.errors import after


def routes(door: HttpDoor) -> list[BaseRoute]:
    """Answers anybody."""

    async def health(request: Request) -> Response:
        if door.draining:
            status = "shutting down"
        elif not door.placer.has_table.is_set():
            status = "waiting for the models"
        else:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": status}, 503, after(1.0))

    return [Route("/health", health)]
