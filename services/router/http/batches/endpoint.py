"""`/v1/batches`: create, list, look at, cancel. Batches that were handed in by gRPC are not seen here."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chiron.batch.contract import UnknownBatchError
from chiron.batch.records import Batch, BatchKey
from services.router.http.batches.creation import BatchRequest, described
from services.router.http.batches.objects import batch_object, status_of
from services.router.http.bodies import json_object
from services.router.http.door import HttpDoor
from services.router.http.errors import HttpError
from services.router.http.ids import BATCH, plausible
from services.router.http.kept import Keeper, keeper_of, telling
from services.router.http.listing import after_of, limit_of, page_of
from services.router.http.reading import read

_LISTED, _MOST_LISTED = 20, 100
_OVER = ("failed", "completed", "expired", "cancelled")
"""What cannot be cancelled any more."""


def routes(door: HttpDoor) -> list[BaseRoute]:
    """What is done with all batches, and with one."""

    async def create(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        body = read(BatchRequest, await json_object(request))
        with telling():
            new = await described(body, keeper.caller, keeper.queue.files, keeper.door.limits)
            batch = await keeper.queue.create(new, keeper.limits)
        keeper.door.made((batch.tenant, batch.batch_id))
        return JSONResponse(batch_object(batch))

    async def list_batches(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        query = request.query_params
        limit = limit_of(query, _LISTED, _MOST_LISTED)
        with telling():
            after = await after_of(query, BATCH, lambda batch_id: _is_there(keeper, batch_id))
            found = await keeper.queue.sourced(keeper.owner, limit=limit + 1, after=after)
        return JSONResponse(page_of([batch_object(one) for one in found], limit))

    async def get_batch(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        return JSONResponse(batch_object(await _batch(keeper, request)))

    async def cancel(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        batch = await _batch(keeper, request)
        if (status := status_of(batch)) in _OVER:
            text = f"Cannot cancel a batch with status '{status}'."
            raise HttpError(409, text, code="batch_state", headers={"x-should-retry": "false"})
        with telling():
            batch = await keeper.queue.cancel(_key(keeper, batch.batch_id))
        return JSONResponse(batch_object(batch))

    return [
        Route("/v1/batches", create, methods=["POST"]),
        Route("/v1/batches", list_batches, methods=["GET"]),
        Route("/v1/batches/{batch_id}", get_batch, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", cancel, methods=["POST"]),
    ]


def _key(keeper: Keeper, batch_id: str) -> BatchKey:
    return keeper.owner, batch_id


async def _is_there(keeper: Keeper, batch_id: str) -> bool:
    try:
        return bool((await keeper.queue.get(_key(keeper, batch_id))).source)
    except UnknownBatchError:
        return False


async def _batch(keeper: Keeper, request: Request) -> Batch:
    batch_id: str = request.path_params["batch_id"]
    unknown = HttpError(
        404, f"No batch has the id {batch_id[:80]!r}.", param="batch_id", code="batch_not_found"
    )
    if not plausible(batch_id):
        raise unknown
    with telling():
        try:
            batch = await keeper.queue.get(_key(keeper, batch_id))
        except UnknownBatchError as error:
            raise unknown from error
    if not batch.source:
        raise unknown
    return batch
