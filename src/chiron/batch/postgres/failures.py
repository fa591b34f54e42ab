"""What an error of PostgreSQL, or of the way to it, means to a caller."""

from __future__ import annotations

import asyncpg

from chiron.batch.contract import BatchQueueError, RefusedError, UnavailableError

AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""The transaction was rolled back for the sake of another one; it may be made again at once."""

_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.DataCorruptedError,
    asyncpg.IndexCorruptedError,
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
)
_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    # Of a connection that is lost in the midst of a call: what the driver finds when it tidies up after it.
    asyncpg.InternalClientError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.LockNotAvailableError,
    *AGAIN,
)
KNOWN = (*_REFUSED, *_UNAVAILABLE)


def translate(error: BaseException, where: str, *, uncertain: bool = False) -> BatchQueueError:
    """The contract's error for one of KNOWN.

    Args:
        error: as asyncpg raised it.
        where: the queue, for the text.
        uncertain: whether a write may have happened.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, _REFUSED):
        return RefusedError(f"batch queue {where}: {text}")
    return UnavailableError(f"batch queue {where}: {text}", uncertain=uncertain)
