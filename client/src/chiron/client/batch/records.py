"""What the client hands back about batches: how they stand, and how each item ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from chiron.client.output import Choice, Timing, Usage


class BatchState(StrEnum):
    """Where a batch is in its life."""

    RECEIVING = "receiving"
    """Its items are still being handed in; nothing runs yet."""
    ACTIVE = "active"
    """Accepted as a whole."""
    CANCELLING = "cancelling"
    """Cancelled; its items are being closed."""
    ENDED = "ended"
    """Every item has its result."""


class LatePolicy(StrEnum):
    """What becomes of items that have no result when the deadline passes."""

    FINISH = "finish"
    """They are worked on, after everything that can still be in time."""
    EXPIRE = "expire"
    """They end as expired."""


class InvalidItemPolicy(StrEnum):
    """What becomes of a batch with items that cannot be worked on."""

    REFUSE = "refuse"
    """The batch is refused as a whole, and nothing of it is kept."""
    FAIL = "fail"
    """Each such item gets a failed result; the others are worked on."""


class DeadlineOutlook(StrEnum):
    """What is expected of a batch's deadline."""

    UNKNOWN = "unknown"
    """Nothing can be said yet."""
    HOLDS = "holds"
    """It holds, also with a bad run."""
    AT_RISK = "at risk"
    """It holds on average, but not with a bad run."""
    MISSES = "misses"


class ItemState(StrEnum):
    """How an item ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Counts of a batch's items; queued + running + the four ends = items_received."""

    items_received: int = 0
    """On disk."""
    items_contiguous: int = 0
    """Every item with a smaller index is on disk."""
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    late: int = 0
    """Of those with a result: recorded after the deadline."""
    prompt_tokens: int = 0
    """Of items that succeeded, as the engines counted them."""
    completion_tokens: int = 0
    estimated_end: datetime | None = None
    """When the last result is expected; None: not known."""
    outlook: DeadlineOutlook = DeadlineOutlook.UNKNOWN

    @property
    def ended(self) -> int:
        """Items that have their result."""
        return self.succeeded + self.failed + self.cancelled + self.expired


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands."""

    batch_id: str
    tenant: str
    """Whose it is; empty where the cluster asks nobody."""
    state: BatchState
    created: datetime
    deadline: datetime
    ended: datetime | None
    """None: not yet."""
    expires: datetime | None
    """When it is forgotten, results included; None while it has not ended."""
    on_late: LatePolicy
    priority: int
    metadata: Mapping[str, str]
    cancelled: bool
    """Somebody has cancelled it."""
    progress: BatchProgress = field(default_factory=BatchProgress)


@dataclass(frozen=True, slots=True)
class ItemOutput:
    """The answer to one item."""

    choices: tuple[Choice, ...]
    usage: Usage
    timing: Timing
    """As the worker saw it; the client's own times are 0."""
    model: str
    spec_version: int
    """Version of the model's spec that answered."""

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why an item has no answer."""

    reason: str
    """As `ChironError.reason`."""
    message: str


@dataclass(frozen=True, slots=True)
class ItemResult:
    """How one item ended."""

    number: int
    """Position in the order in which the batch's results were recorded, from 1 without a gap."""
    index: int
    custom_id: str
    state: ItemState
    output: ItemOutput | None
    """Of one that succeeded."""
    error: ItemFailure | None
    """Of one that did not."""
    recorded: datetime
    late: bool
    """Recorded after the deadline."""
    attempts: int
    """How often it was begun."""


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant has in the queue."""

    tenant: str
    open_batches: int
    queued: int
    running: int
    stored_bytes: int
    succeeded: int
    """This and the following: since the queue was made."""
    failed: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class MalformedItem:
    """An item that the caller could not read: it takes part in the batch as an invalid one."""

    reason: str
    custom_id: str = ""
