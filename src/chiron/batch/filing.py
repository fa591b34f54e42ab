"""Files in a batch queue's store: what is known of one, and the contract of whoever keeps them.

A file is bytes that a tenant has handed in, or a view of a batch's results: the latter has a row, which is
listed, deleted and expires like any other, and no bytes of its own.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

from chiron.batch.errors import BatchQueueError
from chiron.batch.records import TenantLimits

FileKey = tuple[str, str]
"""A file's tenant and its id, which is unique within the tenant."""

UNLIMITED = TenantLimits()


class FileKind(IntEnum):
    """What a file holds."""

    UPLOAD = 1
    """Bytes that were handed in."""
    OUTPUT = 2
    """The results of a batch that succeeded."""
    ERRORS = 3
    """All other results of a batch."""


@dataclass(frozen=True, slots=True)
class FileHead:
    """What is said of an upload as it ends."""

    name: str
    """A label; no store makes a path of it."""
    expires_s: float
    """When it is forgotten, from when it was begun, in seconds; > 0."""


@dataclass(frozen=True, slots=True)
class NewView:
    """A file of a batch's results."""

    file_id: str
    kind: FileKind
    """OUTPUT or ERRORS."""
    name: str
    size: int
    """Of what readers are given, in bytes."""
    expires_s: float
    """When it is forgotten, from now, in seconds; at the latest with its batch."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as it stands. Instants are seconds since the Unix epoch by the store's clock."""

    file_id: str
    tenant: str
    kind: FileKind
    name: str
    size: int
    """Bytes."""
    chunks: int
    """Of an upload; a view has none."""
    created: float
    expires: float
    """When it is forgotten."""
    batch_id: str
    """Whose results it shows; empty: an upload."""


class UnknownFileError(BatchQueueError):
    """There is no such file, or it was forgotten."""


class FileStateError(BatchQueueError):
    """An upload is not what the caller takes it for: ended, or with other chunks; the text says which."""


class DamagedFileError(BatchQueueError):
    """A chunk is not as it was written."""


class FileStore(abc.ABC):
    """Files. What a call has done is on disk when it returns.

    Any method MAY raise UnavailableError; a write that is made again after it MUST have happened once. A file
    that is being handed in MUST NOT be seen by `get`, `page` and `read`. Memory MUST NOT grow with the size
    of a file. Bytes count against the same limits as those of items.
    """

    @abc.abstractmethod
    async def begin(self, file: FileKey) -> None:
        """Makes an upload. One that takes no chunk for `Limits.upload_s` is forgotten. Idempotent.

        Raises FileStateError where a file that has been completed has this id.
        """

    @abc.abstractmethod
    async def write(self, file: FileKey, chunk: int, data: bytes, limits: TenantLimits = UNLIMITED) -> None:
        """Keeps the next chunk of an upload; `chunk` counts from 0. One that is kept already is passed over.

        Raises UnknownFileError, FileStateError, QueueFullError.
        """

    @abc.abstractmethod
    async def complete(self, file: FileKey, head: FileHead, chunks: int) -> StoredFile:
        """Makes an upload of so many chunks a file. Idempotent. Raises UnknownFileError, FileStateError."""

    @abc.abstractmethod
    async def get(self, file: FileKey) -> StoredFile:
        """A file of a tenant. Raises UnknownFileError."""

    @abc.abstractmethod
    async def page(
        self,
        tenant: str,
        *,
        limit: int,
        after: str = "",
        ascending: bool = False,
        kinds: Collection[FileKind] = tuple(FileKind),
    ) -> Sequence[StoredFile]:
        """Up to `limit` of a tenant's files, in the order of their ids.

        They begin after `after`, which need not be there (any more); empty: at the first.
        """

    @abc.abstractmethod
    async def read(self, file: FileKey, chunk: int) -> bytes:
        """A chunk of an upload that was completed; empty: it has no such chunk.

        Raises UnknownFileError, DamagedFileError.
        """

    @abc.abstractmethod
    async def delete(self, file: FileKey) -> None:
        """Forgets a file, or an upload that is under way; `sweep` removes its bytes, in slices.

        With a view go those results that it shows: their batch keeps no more than how they ended. Raises
        UnknownFileError.
        """
