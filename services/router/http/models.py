"""`/v1/models`: what the caller may ask for. An adapter is named `MODEL:ADAPTER`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chiron.auth.callers import Caller
from chiron.internal.v1 import control_pb2
from services.router.http.door import HttpDoor
from services.router.http.errors import HttpError
from services.router.http.exchange import exchange_of

_OWNER = "chiron"


def split(name: str) -> tuple[str, str]:
    """Model and adapter of a name; no adapter: empty. Models' names have no colon."""
    model, _, adapter = name.partition(":")
    return model, adapter


def routes(door: HttpDoor) -> list[BaseRoute]:
    """The list and its single entries."""

    async def list_models(request: Request) -> Response:
        call = await exchange_of(request).enter()
        return JSONResponse({"object": "list", "data": list(_models(door, call.who))})

    async def get_model(request: Request) -> Response:
        call = await exchange_of(request).enter()
        name = request.path_params["name"]
        for found in _models(door, call.who):
            if found["id"] == name:
                return JSONResponse(found)
        text = f"the model {name!r} does not exist, or you may not use it"
        raise HttpError(404, text, param="model", code="model_not_found")

    return [Route("/v1/models", list_models), Route("/v1/models/{name:path}", get_model)]


def _models(door: HttpDoor, caller: Caller | None) -> Iterator[dict[str, Any]]:
    for routed in sorted(door.placer.models(), key=lambda model: model.name):
        if caller is None or caller.may_use(routed.name):
            yield _entry(routed, routed.name)
            for adapter in sorted(routed.adapters):
                yield {**_entry(routed, f"{routed.name}:{adapter}"), "parent": routed.name}


def _entry(routed: control_pb2.RoutedModel, name: str) -> dict[str, Any]:
    # The protocol asks for a time of creation, which no router is told.
    return {"id": name, "object": "model", "created": 0, "owned_by": _OWNER}
