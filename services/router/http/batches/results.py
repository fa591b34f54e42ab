"""From a recorded result to its line in the output file or the error file. Pure.

A line is the same whenever it is made, as long as the program is.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from chiron.batch import wire
from chiron.batch.filing import FileKind
from chiron.batch.records import ItemState, Result
from chiron.rpc.errors import ChironError
from services.router.http import names
from services.router.http.batches.source import CHAT, Source
from services.router.http.chat import answer as chat
from services.router.http.completions import answer as completions
from services.router.http.errors import HttpError, of_chiron
from services.router.http.head import Head

_NOT_RUN = {
    ItemState.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    ItemState.CANCELLED: ("batch_cancelled", "This request was not executed: the batch was cancelled."),
}


def kind_of(result: Result) -> FileKind:
    """The file that shows it."""
    return FileKind.OUTPUT if result.state is ItemState.SUCCEEDED else FileKind.ERRORS


def line_of(batch_id: str, source: Source, result: Result) -> bytes:
    """Its line, with the newline at its end."""
    name = hashlib.blake2b(f"{batch_id} {result.index}".encode(), digest_size=12).hexdigest()
    line: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": result.custom_id}
    if result.state in _NOT_RUN:
        code, message = _NOT_RUN[result.state]
        line |= {"response": None, "error": {"code": code, "message": message}}
    else:
        status, body = _answer(source, name, result)
        line |= {
            "response": {"status_code": status, "request_id": f"req-{name}", "body": body},
            "error": None,
        }
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _answer(source: Source, name: str, result: Result) -> tuple[int, dict[str, Any]]:
    item = wire.item_result(result)
    if not item.HasField("output"):
        return _error(wire.error_of(item.error), source)
    created = int(result.recorded)
    try:
        if source.endpoint == CHAT:
            return 200, chat.whole(item.output, Head(f"chatcmpl-{name}", created, source.model))
        return 200, completions.whole(item.output, Head(f"cmpl-{name}", created, source.model))
    except ChironError as error:
        return _error(error, source)


def _error(error: ChironError, source: Source) -> tuple[int, dict[str, Any]]:
    told: HttpError = of_chiron(error, names.CHAT if source.endpoint == CHAT else names.COMPLETION)
    return told.status, told.object()
