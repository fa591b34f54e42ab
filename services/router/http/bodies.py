"""The bodies of requests, as long as they can be read without holding up all others."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from chiron.rpc.reading import MOST_FIELDS
from services.router.http.errors import HttpError
from services.router.http.reading import parsed

_SURELY_FEW_BYTES = 64 * 1024


async def json_object(request: Request) -> dict[str, Any]:
    """The JSON object that a body is, of no more values than can be read at once.

    Raises:
        HttpError: 400, 408, 413, 415.
    """
    check_coding(request)
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json":
        raise HttpError(415, f"the body must be application/json, not {media}", code="unsupported_media_type")
    body = await request.body()
    if too_many_values(body):
        text = f"the body has more than {MOST_FIELDS} values"
        raise HttpError(400, text, code="too_many_values")
    return parsed(body)


def check_coding(request: Request) -> None:
    """Raises HttpError (415) for a body that is compressed: it is read as it comes."""
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        text = f"a body with content-encoding {coding[:80]!r} is not taken: send it as it is"
        headers = {"accept-encoding": "identity"}
        raise HttpError(415, text, code="unsupported_media_type", headers=headers)


def too_many_values(body: bytes) -> bool:
    """Whether a JSON text has more values than a message of the gRPC door may have fields.

    To make objects of them takes seconds, in which a router does nothing else; this takes a few milliseconds.
    """
    if len(body) <= _SURELY_FEW_BYTES:
        return False
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * MOST_FIELDS:
        return True
    # Every other part is a string.
    outside = b"".join(plain.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{") > MOST_FIELDS
