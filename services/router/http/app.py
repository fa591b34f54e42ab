"""Puts the HTTP door's routes together, and answers whatever an endpoint raises."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from chiron.rpc.errors import ChironError
from services.router.http import health, models, scrape, unserved
from services.router.http.batches import endpoint as batches
from services.router.http.chat import endpoint as chat
from services.router.http.completions import endpoint as completions
from services.router.http.door import HttpDoor
from services.router.http.errors import HttpError, told
from services.router.http.exchange import Exchanges, exchange_of
from services.router.http.files import endpoint as files
from services.router.http.running import CAME_TO
from services.router.proxy import WorkerStatusError

_TOLD = (
    "x-request-id",
    "openai-processing-ms",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    *CAME_TO,
)
"""Headers that pages of other origins may read."""


def served(door: HttpDoor) -> ASGIApp:
    """What the server runs."""
    return Exchanges(_for_pages(application(door), door), door)


def application(door: HttpDoor) -> Starlette:
    """The endpoints. It needs the layer around it that `served` adds."""
    app = Starlette(
        # They are tried in turn: what is asked most comes first.
        routes=[
            *chat.routes(door),
            *completions.routes(door),
            *health.routes(door),
            *scrape.routes(door),
            *models.routes(door),
            *files.routes(door),
            *batches.routes(door),
            *unserved.routes(door),
        ],
        exception_handlers={
            HttpError: _answer,
            ChironError: _answer,
            WorkerStatusError: _answer,
            HTTPException: _answer,
            Exception: _answer,
        },
    )
    app.router.redirect_slashes = False
    return app


def _for_pages(app: ASGIApp, door: HttpDoor) -> ASGIApp:
    """Around all of Starlette, which answers defects outside its middleware: pages are told of them too."""
    if not door.settings.cors_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=door.settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=_TOLD,
    )


async def _answer(request: Request, error: Exception) -> Response:
    exchange = exchange_of(request)
    exchange.error = error
    if isinstance(error, HTTPException):
        return response(_of_starlette(request, error))
    return response(told(error, exchange.fields))


def response(error: HttpError) -> Response:
    """The answer that tells an error."""
    return Response(error.body(), error.status, error.headers, "application/json")


def _of_starlette(request: Request, error: HTTPException) -> HttpError:
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 404:
        return HttpError(404, f"there is nothing at {path}", code="unknown_url")
    if error.status_code == 405:
        allowed = ", ".join(_allowed(request))
        text = f"{request.method} is not allowed for {path}: {allowed}"
        return HttpError(405, text, code="method_not_allowed", headers={"allow": allowed})
    return HttpError(error.status_code, error.detail, code="bad_request", headers=headers)


def _allowed(request: Request) -> list[str]:
    """The methods of a path, over all routes that lead there."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return sorted(found)
