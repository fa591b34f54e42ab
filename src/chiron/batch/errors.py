"""What may be wrong with a call on a batch queue."""

from __future__ import annotations


class BatchQueueError(Exception):
    """Base of all errors of a batch queue."""


class UnknownBatchError(BatchQueueError):
    """There is no such batch, or it was forgotten."""


class BatchExistsError(BatchQueueError):
    """Another batch has this id."""


class BatchStateError(BatchQueueError):
    """The batch is in a state in which this cannot be done; the text names it."""


class ItemError(BatchQueueError):
    """An item cannot be kept beside those that are kept already. Nothing of the call was written.

    Attributes:
        index: the item.
        field: `index` or `custom_id`.
    """

    def __init__(self, index: int, field: str, text: str) -> None:
        super().__init__(text)
        self.index = index
        self.field = field


class IncompleteError(BatchQueueError):
    """A batch that is to be sealed lacks an item, or has more than its header says; the text says which."""


class QueueFullError(BatchQueueError):
    """A limit of the queue is reached; the text names it. Nothing of the call was written."""


class TenantFullError(QueueFullError):
    """A limit of the tenant is reached."""


class UnavailableError(BatchQueueError):
    """The store cannot be reached, or takes no writes, at present; the text says why.

    Attributes:
        uncertain: the call was a write, and whether it has happened is not known. Every write of the contract
            may simply be made again.
    """

    def __init__(self, text: str, *, uncertain: bool = False) -> None:
        super().__init__(text)
        self.uncertain = uncertain


class RefusedError(BatchQueueError):
    """This program cannot use the store, for good: damaged, of a newer schema, held by another, forbidden."""


class SessionLostError(BatchQueueError):
    """The session has lapsed or ended: what it claimed may be with others. Begin a new one."""
