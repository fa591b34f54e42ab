"""What both stores ask as items are handed in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.batch.contract import BatchExistsError, BatchStateError, UnknownBatchError
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
