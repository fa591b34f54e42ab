"""What both endpoints for text do alike with a request and its answer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.router.http.exchange import Exchange
from services.router.http.fields import TextFields
from services.router.http.head import Head


def name_request(exchange: Exchange, messages: Sequence[pb.GenerateRequest]) -> None:
    """Gives requests that have no name that of their exchange: one name from the client to the worker."""
    for index, message in enumerate(messages):
        if not message.request_id:
            several = len(messages) > 1
            message.request_id = f"{exchange.request_id}-{index}" if several else exchange.request_id


def head_of(kind: str, exchange: Exchange, request: TextFields, message: pb.GenerateRequest) -> Head:
    """The head of an answer that begins now.

    Args:
        kind: how its id begins.
        exchange: its caller has been let in.
        request: the body.
        message: what it comes to.
    """
    name = request.request_id or exchange.request_id.removeprefix("req-")
    return Head(
        id=f"{kind}-{name}",
        created=int(time.time()),
        model=request.model,
        tier=_tier(exchange, message),
        copies=request.copies,
        token_ids=bool(request.return_token_ids),
        tokens_as_ids=bool(request.return_tokens_as_token_ids),
    )


def _tier(exchange: Exchange, message: pb.GenerateRequest) -> str:
    """The service tier that a request has got, by its own class or by that of its caller's key."""
    who = exchange.call.who if exchange.call is not None else None
    defaults = who.key.defaults if who is not None and who.key is not None else None
    kind = message.request_class or (defaults.request_class if defaults is not None else 0)
    return "flex" if kind == types_pb2.REQUEST_CLASS_BATCH else "default"


def json_response(answer: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """An answer that is whole."""
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, headers=headers, media_type="application/json")
