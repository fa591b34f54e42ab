"""What a client sends to have a batch made, and the batch that it describes."""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

from chiron.auth.callers import Caller
from chiron.batch.filing import FileKey, FileKind, FileStore, UnknownFileError
from chiron.batch.records import Limits, NewBatch
from chiron.v1 import batch_pb2 as pb
from services.router.batch.header import check_caller, check_header, new_batch
from services.router.http.batches.lines import TooManyLinesError
from services.router.http.batches.making import lines_of
from services.router.http.batches.requests import model_of
from services.router.http.batches.source import ENDPOINTS, Source
from services.router.http.batches.window import window_s
from services.router.http.errors import HttpError
from services.router.http.fields import Fields
from services.router.http.files.expiry import check_expiry
from services.router.http.ids import BATCH, new_id, plausible
from services.router.http.kept import no_file

_FILE = "input_file_id"


class ExpiresAfter(Fields):
    """When the files of the results are forgotten."""

    anchor: Any
    seconds: Any


class BatchRequest(Fields):
    """The body of a creation."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: ExpiresAfter | None = None


async def described(
    request: BatchRequest, caller: Caller | None, store: FileStore, limits: Limits
) -> NewBatch:
    """The batch that is to be made; its file is there.

    Raises:
        ChironError: NOT_ALLOWED, QUOTA_EXCEEDED.
        HttpError: 400, 404.
        BatchQueueError: as the store says.
    """
    if request.endpoint not in ENDPOINTS:
        text = f"'endpoint' must be one of {', '.join(ENDPOINTS)}."
        raise HttpError(400, text, param="endpoint", code="invalid_value")
    deadline_s = window_s(request.completion_window)
    header = pb.BatchHeader(deadline_s=deadline_s, metadata=request.metadata or {})
    owner, key_id = "", ""
    if caller is not None:
        owner, key_id = caller.tenant.name, "" if caller.key is None else caller.key.key_id
        caller.fill_batch(header)
        check_caller(header, caller)
    for _, what in check_header(header, limits):
        raise HttpError(400, f"'metadata' {what}.", param="metadata", code="invalid_value")
    after = request.output_expires_after
    expires_s = None
    if after is not None:
        expires_s = check_expiry(after.anchor, after.seconds, "output_expires_after")
    model = await _model(store, (owner, request.input_file_id), limits)
    window = request.completion_window
    source = Source(request.input_file_id, request.endpoint, window, model, key_id, expires_s)
    header.batch_id, header.late = new_id(BATCH), pb.LATE_POLICY_EXPIRE
    return replace(new_batch(header, owner), source=source.text())


async def _model(store: FileStore, key: FileKey, limits: Limits) -> str:
    """The model that the input file's first line names."""
    if not plausible(key[1]):
        raise no_file(key[1], _FILE)
    try:
        kind = (await store.get(key)).kind
    except UnknownFileError as error:
        raise no_file(key[1], _FILE) from error
    if kind is not FileKind.UPLOAD:
        text = f"'{_FILE}' must be a file that was uploaded with the purpose 'batch'."
        raise HttpError(400, text, param=_FILE, code="invalid_value")
    async with aclosing(lines_of(store, key, limits)) as lines:
        with suppress(TooManyLinesError):
            async for line in lines:
                return model_of(line)
    return ""
