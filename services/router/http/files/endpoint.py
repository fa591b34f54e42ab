"""`/v1/files`: upload, list, look at, read, delete."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from chiron.batch.filing import FileKey, FileKind, StoredFile, UnknownFileError
from services.router.http.batches import views
from services.router.http.bodies import check_coding
from services.router.http.door import HttpDoor
from services.router.http.exchange import exchange_of
from services.router.http.files.form import Form
from services.router.http.files.names import disposition
from services.router.http.files.objects import file_object, kinds_of
from services.router.http.files.places import Download, Places, Room
from services.router.http.files.upload import Upload, check_fits
from services.router.http.ids import FILE, new_id, plausible
from services.router.http.kept import Keeper, keeper_of, no_file, telling
from services.router.http.listing import after_of, ascending_of, limit_of, page_of

_MOST_LISTED, _MOST_OF_PAGE = 10_000, 1_000
"""What a client may ask for, and what it gets at once: the rest is on the next page."""
_FORM_BYTES = 65_536
"""What a form may have around its file."""
_UPLOADS, _DOWNLOADS = Room("uploaded", 32, 8), Room("read", 64, 16)
"""Of one router at once; each takes up to two chunks of memory."""


def routes(door: HttpDoor) -> list[BaseRoute]:
    """What is done with all files, with one, and with its content."""
    uploads, downloads = Places(_UPLOADS), Places(_DOWNLOADS)

    async def upload(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        keeper.check_batches()
        check_coding(request)
        exchange_of(request).body_bytes = door.settings.file_bytes + _FORM_BYTES
        # What surely never fits is told before it is sent, and also where other files leave it no room.
        check_fits(int(request.headers.get("content-length", 0)) - _FORM_BYTES, keeper.limits)
        form = Form(request.headers.get("content-type", ""))
        with uploads.taken(keeper.owner), telling():
            one = Upload(
                keeper.queue.files,
                (keeper.owner, new_id(FILE)),
                keeper.limits,
                most_bytes=door.settings.file_bytes,
                keep_s=keeper.door.limits.retention_s,
            )
            return JSONResponse(file_object(await one.run(form, request.stream())))

    async def list_files(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        query = request.query_params
        limit = min(_MOST_OF_PAGE, limit_of(query, _MOST_LISTED, _MOST_LISTED))
        with telling():
            found = await keeper.queue.files.page(
                keeper.owner,
                limit=limit + 1,
                after=await after_of(query, FILE, lambda file_id: _is_there(keeper, file_id)),
                ascending=ascending_of(query),
                kinds=kinds_of(query.get("purpose")),
            )
        return JSONResponse(page_of([file_object(one) for one in found], limit))

    async def get_file(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        with telling():
            return JSONResponse(file_object(await keeper.queue.files.get(_key(keeper, request))))

    async def delete_file(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        key = _key(keeper, request)
        with telling():
            # An upload that is under way is nothing that anybody sees.
            await keeper.queue.files.get(key)
            await keeper.queue.files.delete(key)
        return JSONResponse({"id": key[1], "object": "file", "deleted": True})

    async def get_content(request: Request) -> Response:
        keeper = await keeper_of(door, request)
        key = _key(keeper, request)
        with telling():
            file = await keeper.queue.files.get(key)
            parts = _content(keeper, key, file)
            # What cannot be read from its first byte on is told with a status.
            first = await anext(parts, b"")
        headers = {"content-disposition": disposition(file.name)}
        if file.kind is FileKind.UPLOAD:
            headers["content-length"] = str(file.size)
        place = downloads.taken(keeper.owner)
        return Download(place, _joined(first, parts), headers=headers, media_type="application/octet-stream")

    return [
        Route("/v1/files", upload, methods=["POST"]),
        Route("/v1/files", list_files, methods=["GET"]),
        Route("/v1/files/{file_id}", get_file, methods=["GET"]),
        Route("/v1/files/{file_id}", delete_file, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", get_content, methods=["GET"]),
    ]


def _key(keeper: Keeper, request: Request) -> FileKey:
    file_id: str = request.path_params["file_id"]
    if not plausible(file_id):
        raise no_file(file_id)
    return keeper.owner, file_id


async def _is_there(keeper: Keeper, file_id: str) -> bool:
    try:
        await keeper.queue.files.get((keeper.owner, file_id))
    except UnknownFileError:
        return False
    return True


def _content(keeper: Keeper, key: FileKey, file: StoredFile) -> AsyncGenerator[bytes, None]:
    if file.kind is FileKind.UPLOAD:
        return _chunks(keeper, key)
    return views.content(keeper.queue, (keeper.owner, file.batch_id), file.kind)


async def _chunks(keeper: Keeper, key: FileKey) -> AsyncGenerator[bytes, None]:
    number = 0
    while chunk := await keeper.queue.files.read(key, number):
        yield chunk
        number += 1


async def _joined(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part
