"""Endpoints of OpenAI's API that are known and not served: told so, instead of that there is nothing."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from services.router.http.door import HttpDoor
from services.router.http.errors import HttpError
from services.router.http.exchange import exchange_of

_UNSERVED = {
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderations",
    "/v1/responses": "the Responses API: use /v1/chat/completions",
    "/v1/responses/{rest:path}": "the Responses API: use /v1/chat/completions",
    "/v1/realtime": "the Realtime API",
    "/v1/edits": "edits",
    "/v1/images/{rest:path}": "images",
    "/v1/audio/{rest:path}": "audio",
    "/v1/videos": "videos",
    "/v1/uploads": "uploads in parts: use /v1/files",
    "/v1/uploads/{rest:path}": "uploads in parts: use /v1/files",
    "/v1/fine_tuning/{rest:path}": "fine-tuning",
    "/v1/vector_stores": "vector stores",
    "/v1/vector_stores/{rest:path}": "vector stores",
    "/v1/assistants": "assistants",
    "/v1/assistants/{rest:path}": "assistants",
    "/v1/threads": "threads",
    "/v1/threads/{rest:path}": "threads",
    "/v1/evals": "evals",
}


def routes(door: HttpDoor) -> list[BaseRoute]:
    """One for each."""

    def refusing(path: str, what: str) -> Route:
        async def endpoint(request: Request) -> Response:
            await exchange_of(request).enter()
            raise HttpError(404, f"this server does not serve {what}", code="unsupported_endpoint")

        return Route(path, endpoint, methods=["GET", "POST", "DELETE"])

    return [refusing(path, what) for path, what in _UNSERVED.items()]
