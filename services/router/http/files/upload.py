"""Takes a file in as it comes: into the queue's store, chunk by chunk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from chiron.batch.contract import BatchQueueError
from chiron.batch.filing import FileHead, FileKey, FileStore, StoredFile, UnknownFileError
from chiron.batch.records import TenantLimits
from chiron.rpc.errors import ChironError, Reason
from services.router.http.errors import HttpError
from services.router.http.files.expiry import check_expiry
from services.router.http.files.form import Event, Field, FileBegins, FileData, Form
from services.router.http.files.names import check_name

log = logging.getLogger(__name__)
CHUNK_BYTES = 1 << 20
"""What one upload holds in memory; each chunk is on disk before the next one is read."""
PURPOSE = "batch"
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("purpose", _ANCHOR, _SECONDS)


class Upload:
    """One file on its way. What is not completed is deleted; what cannot be, the store forgets by itself."""

    def __init__(
        self,
        store: FileStore,
        key: FileKey,
        limits: TenantLimits,
        *,
        most_bytes: int,
        keep_s: float,
    ) -> None:
        """Nothing is kept yet.

        Args:
            store: keeps it.
            key: of the file to be.
            limits: of its tenant.
            most_bytes: of a file.
            keep_s: how long a file is kept at most, and unless told, in seconds.
        """
        self._store = store
        self._key = key
        self._limits = limits
        self._most_bytes = most_bytes
        self._keep_s = keep_s
        self._fields: dict[str, str] = {}
        self._name: str | None = None
        self._size = 0
        self._chunks = 0
        self._held = bytearray()

    async def run(self, form: Form, body: AsyncIterator[bytes]) -> StoredFile:
        """Reads the form to its end and keeps the file.

        Raises:
            HttpError: 400, 408, 413: what was sent is not what is taken; nothing of it is kept.
            ChironError: QUOTA_EXCEEDED: it is larger than all that its tenant may keep.
            BatchQueueError: as the store says.
        """
        try:
            async for piece in body:
                for event in form.feed(piece):
                    await self._take(event)
            form.check_complete()
            return await self._complete()
        except UnknownFileError as error:
            text = "The upload was too slow, and has been given up."
            raise HttpError(408, text, code="request_timeout") from error
        except BaseException:
            if self._name is not None:
                await self._discard()
            raise

    async def _take(self, event: Event) -> None:
        if isinstance(event, FileData):
            await self._add(event.data)
        elif isinstance(event, FileBegins):
            if event.field != "file":
                raise _unknown(event.field)
            if self._name is not None:
                raise _wrong("Only one file can be uploaded at a time.", "file")
            self._name = check_name(event.filename)
            await self._store.begin(self._key)
        else:
            self._set(event)

    def _set(self, field: Field) -> None:
        if field.name == "file":
            raise _wrong("'file' must be a file: its part has no file name.", "file")
        if field.name not in _FIELDS:
            raise _unknown(field.name)
        if field.name in self._fields:
            raise _wrong(f"'{field.name[:40]}' occurs twice.", field.name)
        self._fields[field.name] = field.value
        if field.name == "purpose":
            self._check_purpose()

    def _check_purpose(self) -> None:
        purpose = self._fields["purpose"]
        if purpose != PURPOSE:
            text = f"Files are kept for batches alone: 'purpose' must be {PURPOSE!r}, not {purpose[:40]!r}."
            raise _wrong(text, "purpose")

    async def _add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._most_bytes:
            text = f"The file is larger than {self._most_bytes} bytes."
            raise HttpError(413, text, param="file", code="file_too_large")
        check_fits(self._size, self._limits)
        self._held += data
        while len(self._held) >= CHUNK_BYTES:
            await self._write(bytes(self._held[:CHUNK_BYTES]))
            del self._held[:CHUNK_BYTES]

    async def _write(self, chunk: bytes) -> None:
        await self._store.write(self._key, self._chunks, chunk, self._limits)
        self._chunks += 1

    async def _complete(self) -> StoredFile:
        if self._name is None:
            raise _missing("file")
        if "purpose" not in self._fields:
            raise _missing("purpose")
        asked_s = check_expiry(self._fields.get(_ANCHOR), self._fields.get(_SECONDS), "expires_after")
        if self._held:
            await self._write(bytes(self._held))
        head = FileHead(self._name, min(asked_s or self._keep_s, self._keep_s))
        return await self._store.complete(self._key, head, self._chunks)

    async def _discard(self) -> None:
        """Deletes what has come, also where the client has gone and this task with it."""
        deletion = asyncio.ensure_future(self._delete())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(deletion)

    async def _delete(self) -> None:
        try:
            await self._store.delete(self._key)
        except UnknownFileError:
            pass
        except BatchQueueError as error:
            log.info("an upload that has ended is left to the store to forget: %s", error)


def check_fits(size: int, limits: TenantLimits) -> None:
    """Raises ChironError (QUOTA_EXCEEDED, without a time) for a file that no room could ever be made for."""
    most = limits.stored_bytes
    if most and size > most:
        text = f"the file has more than {most} bytes, all that the quota of this tenant (batch_bytes) allows"
        told = {"limit": "batch_bytes", "limit_of": "tenant"}
        raise ChironError(Reason.QUOTA_EXCEEDED, text, metadata=told)


def _wrong(text: str, param: str) -> HttpError:
    return HttpError(400, text, param=param, code="invalid_value")


def _unknown(field: str) -> HttpError:
    return HttpError(400, f"Unknown parameter: '{field[:40]}'.", param=field[:40], code="unknown_parameter")


def _missing(field: str) -> HttpError:
    text = f"Missing required parameter: '{field}'."
    return HttpError(400, text, param=field, code="missing_required_parameter")
