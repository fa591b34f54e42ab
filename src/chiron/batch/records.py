"""What a batch queue keeps and hands out. Values only.

Instants are seconds since the Unix epoch by the store's clock; durations are seconds. Bodies, checkpoints and
results are bytes that no store looks into.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

BatchKey = tuple[str, str]
"""A batch's tenant and its id, which is unique within the tenant."""


class BatchState(IntEnum):
    """Where a batch is in its life; as chiron.v1.BatchState."""

    RECEIVING = 1
    ACTIVE = 2
    CANCELLING = 3
    ENDED = 4


class ItemState(IntEnum):
    """How an item ended; as chiron.v1.ItemState."""

    SUCCEEDED = 1
    FAILED = 2
    CANCELLED = 3
    EXPIRED = 4


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch to be made. Two that are equal but for `deadline_s` are the same submission."""

    batch_id: str
    tenant: str
    deadline_s: float
    """From now on; > 0."""
    expire_late: bool = False
    """Whether items that have not finished at the deadline end as expired."""
    fail_invalid: bool = False
    """Whether an invalid item fails by itself."""
    priority: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    items: int = 0
    """Items to come; 0: unknown."""
    source: str = ""
    """From what its items are made, by whoever works on the queue; no store looks into it. Empty: a client
    hands them in."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to be kept."""

    index: int
    """Place in the batch, from 0."""
    custom_id: str
    model: str
    prompt_tokens: int
    """Estimated."""
    max_tokens: int
    """Most output tokens over all choices; 0: the model's limit."""
    body: bytes
    failure: bytes = b""
    """It is not worked on: this is its result, as FAILED, once the batch is sealed. Empty: it is."""


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Items of one batch; queued + running + the four ends = received."""

    received: int = 0
    contiguous: int = 0
    """Every item with a smaller index is kept."""
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    late: int = 0
    """Ended after the deadline."""
    prompt_tokens: int = 0
    """As counted by the engines, of items that succeeded."""
    completion_tokens: int = 0

    @property
    def ended(self) -> int:
        """Items that have their result."""
        return self.succeeded + self.failed + self.cancelled + self.expired


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands."""

    batch_id: str
    tenant: str
    state: BatchState
    created: float
    deadline: float
    expire_late: bool
    fail_invalid: bool
    priority: int
    metadata: Mapping[str, str]
    items: int
    """As NewBatch.items."""
    cancelled: bool
    ended: float | None
    expires: float | None
    """When it is forgotten; None while it has not ended."""
    counts: BatchCounts
    sealed: float | None = None
    """When it was accepted."""
    cancelled_at: float | None = None
    source: str = ""
    """As NewBatch.source."""
    refusal: str = ""
    """What was wrong with its source; it has no items then."""
    closed: float | None = None
    """When its files were made, or it was refused; None: not yet, or it has no source."""
    output_file: str = ""
    """Id of the file of its results that succeeded; empty: none was made."""
    error_file: str = ""
    """The same, of all other results."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What waits of one active batch for one model: items of one tenant and one deadline, in their order.

    However long the queue, there are no more units than open batches times their models.
    """

    batch: BatchKey
    model: str
    deadline: float
    """Absolute."""
    expire_late: bool
    priority: int
    sealed: float
    """When the batch was accepted."""
    queued: int
    """Items that wait; those put back for a while are among them."""
    prompt_tokens: int
    """Sum over these."""
    max_tokens: int
    """Sum over these, as NewItem has them."""


@dataclass(frozen=True, slots=True)
class Session:
    """One router's hold on what it has claimed; it lapses unless renewed."""

    session_id: int
    """Greater than every one before."""
    owner: str
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to record one item's result, until the session lapses or the item is claimed anew."""

    batch: BatchKey
    index: int
    fence: int
    """Greater for each claim of the item."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An item to be worked on."""

    lease: Lease
    custom_id: str
    model: str
    deadline: float
    expire_late: bool
    prompt_tokens: int
    max_tokens: int
    attempt: int
    """How often it has been claimed, this time included, without the claims that do not count."""
    body: bytes
    checkpoint: bytes
    """What the last holder left; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a claimed item ended."""

    lease: Lease
    state: ItemState
    result: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Return:
    """A claimed item that goes back to its place in the queue."""

    lease: Lease
    delay_s: float = 0.0
    """Not to be claimed before."""
    checkpoint: bytes | None = None
    """None: what is kept stays."""
    counts: bool = True
    """Whether this claim counts against the item's attempts; False where it was not begun."""
    failure: bytes = b""
    """Its result, as FAILED, should it have no attempt left."""


@dataclass(frozen=True, slots=True)
class Result:
    """One recorded result."""

    number: int
    """Position in its batch, from 1 without a gap; never seen before a smaller one."""
    index: int
    custom_id: str
    state: ItemState
    result: bytes
    """Empty for items that were cancelled, that expired unclaimed, whose last attempt ended with its session
    (FAILED), and for damaged ones."""
    recorded: float
    late: bool
    attempts: int
    """Claims that count."""
    damaged: bool = False
    """The item, or this result, was found damaged in the store: FAILED."""
    removed: bool = False
    """It went with the file that showed it: `result` is empty."""


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What one tenant has in the queue."""

    tenant: str
    open_batches: int
    queued: int
    running: int
    stored_bytes: int
    """Bodies, checkpoints, results and files."""
    succeeded: int
    """This and the following: since the queue was made."""
    failed: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a queue takes; 0: no limit."""

    items_per_batch: int = 1_000_000
    queued_items: int = 20_000_000
    """Over all tenants, received ones included."""
    open_batches: int = 100_000
    stored_bytes: int = 0
    body_bytes: int = 4 << 20
    attempts: int = 5
    """Claims of an item that count, after which it fails."""
    receive_s: float = 86_400.0
    """A batch that is not sealed within this time of its last item is discarded."""
    retention_s: float = 30 * 86_400.0
    """How long a batch is kept once it has ended."""
    upload_s: float = 600.0
    """An upload that takes no chunk for this long is forgotten."""


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """How much of a queue one tenant may have; 0: no limit."""

    queued_items: int = 0
    open_batches: int = 0
    stored_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Swept:
    """What one round of housekeeping did."""

    requeued: int = 0
    """Items of sessions that lapsed."""
    failed: int = 0
    """Of these, without an attempt left."""
    expired: int = 0
    cancelled: int = 0
    forgotten: int = 0
    """Batches, past their retention or never sealed."""
    again_s: float = 0.0
    """When the next round has something to do, from now; 0: at once."""
