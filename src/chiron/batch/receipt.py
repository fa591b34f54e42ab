"""What both stores ask as items are handed in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.batch.errors import BatchExistsError, BatchStateError, UnknownBatchError
from chiron.batch.filing import DamagedFileError, FileKey, FileStateError, UnknownFileError
from chiron.batch.records import BatchKey, BatchState, Limits, TenantLimits


def unknown(key: BatchKey) -> UnknownBatchError:
    """The error of a call on a batch that is not there."""
    return UnknownBatchError(f"no batch {key[1]!r}{_owner(key[0])}")


def taken(key: BatchKey) -> BatchExistsError:
    """The error of a submission whose id another one has."""
    return BatchExistsError(f"another batch{_owner(key[0])} has the id {key[1]!r}")


def _owner(tenant: str) -> str:
    """Nothing where tenancy is off."""
    return f" of tenant {tenant!r}" if tenant else ""


def exceeded(limits: Limits | TenantLimits, used: Sequence[int], more: Sequence[int]) -> str:
    """Which limit does not allow `more` beside what is `used`; empty: all do.

    Both are open batches, queued items, stored bytes.
    """
    names = ("open batches", "queued items", "stored bytes")
    most = (limits.open_batches, limits.queued_items, limits.stored_bytes)
    for name, bound, held, added in zip(names, most, used, more, strict=True):
        if bound and added and held + added > bound:
            return f"{held} {name}; {added} more exceed the limit of {bound}"
    return ""


def runs(indexes: Sequence[int]) -> list[tuple[int, int]]:
    """Sorted indexes without repetitions as runs [start, stop)."""
    found: list[tuple[int, int]] = []
    start = 0
    for place in range(1, len(indexes) + 1):
        if place == len(indexes) or indexes[place] != indexes[place - 1] + 1:
            found.append((indexes[start], indexes[place - 1] + 1))
            start = place
    return found


def wrong_state(batch_id: str, state: int, text: str) -> BatchStateError:
    """The error of a call for which the batch is in the wrong state."""
    return BatchStateError(f"batch {batch_id!r} is {BatchState(state).name}: {text}")


def not_refused(batch_id: str, state: int) -> BatchStateError:
    """The error of a refusal of a batch that is not being made from a source."""
    return wrong_state(batch_id, state, "only one that is received from a source is refused")


def not_ended(batch_id: str, state: int) -> BatchStateError:
    """The error of making files for a batch that has none to be made."""
    return wrong_state(batch_id, state, "only one that has a source and has ended is given files")


def unknown_file(key: FileKey) -> UnknownFileError:
    """The error of a call on a file that is not there."""
    return UnknownFileError(f"no file {key[1]!r}{_owner(key[0])}")


def other_chunk(file_id: str, chunk: int, chunks: int) -> FileStateError:
    """The error of a chunk that does not follow the last."""
    return FileStateError(f"upload {file_id!r} has {chunks} chunks: number {chunk} is not the next")


def completed(file_id: str) -> FileStateError:
    """The error of a call for which the upload would have to be under way."""
    return FileStateError(f"file {file_id!r} is complete")


def other_length(file_id: str, chunks: int, wanted: int) -> FileStateError:
    """The error of an upload that ends with another number of chunks than it has."""
    return FileStateError(f"upload {file_id!r} has {chunks} chunks, not {wanted}")


def damaged_chunk(file_id: str, chunk: int) -> DamagedFileError:
    """The error of a chunk that cannot be read."""
    return DamagedFileError(f"file {file_id!r}: chunk {chunk} was found damaged in the store")
