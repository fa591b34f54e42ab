"""What callers are told of the queue's errors."""

from __future__ import annotations

from chiron.batch.contract import (
    BatchExistsError,
    BatchQueueError,
    BatchStateError,
    IncompleteError,
    ItemError,
    QueueFullError,
    TenantFullError,
    UnavailableError,
    UnknownBatchError,
)
from chiron.rpc.errors import ChironError, Reason

_FULL_RETRY_S, _DOWN_RETRY_S = 5.0, 1.0
_REASONS: tuple[tuple[type[BatchQueueError], Reason, float | None], ...] = (
    (UnknownBatchError, Reason.BATCH_NOT_FOUND, None),
    (BatchExistsError, Reason.BATCH_EXISTS, None),
    (BatchStateError, Reason.BATCH_STATE, None),
    (TenantFullError, Reason.QUOTA_EXCEEDED, _FULL_RETRY_S),
    (QueueFullError, Reason.BATCH_QUEUE_FULL, _FULL_RETRY_S),
    (UnavailableError, Reason.STORE_UNAVAILABLE, _DOWN_RETRY_S),
)


def told(error: BatchQueueError) -> ChironError:
    """The refusal that a caller gets."""
    if isinstance(error, ItemError):
        return ChironError.invalid([(f"items[{error.index}].{error.field}", str(error))])
    if isinstance(error, IncompleteError):
        return ChironError.invalid([("items", str(error))])
    for kind, reason, retry_after_s in _REASONS:
        if isinstance(error, kind):
            return ChironError(reason, str(error), retry_after_s=retry_after_s)
    # Refused for good or a session lost: neither is the caller's doing.
    return ChironError(Reason.STORE_UNAVAILABLE, f"the batch queue cannot be used: {error}")
