"""The `[router.batch]` table."""

from __future__ import annotations

from dataclasses import dataclass, fields

from chiron.batch.records import Limits

_AT_LEAST_ONE = ("checkpoint_tokens", "attempts", "ahead", "memory_bytes", "body_bytes", "starving_every")
_SCHEMES = ("sqlite:", "postgresql://", "postgres://")


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """The durable batch queue, and how this router works on it."""

    store: str = ""
    """Where the queue lies: `sqlite:PATH` (this router alone) or `postgresql://…` (several routers). Empty:
    this router has no batch queue."""
    checkpoint_s: float = 10.0
    """How far a running item has come is written down this often, in seconds."""
    checkpoint_tokens: int = 256
    """The same by output tokens, whichever comes first."""
    session_ttl_s: float = 10.0
    """What this router has claimed goes back to the queue when the queue hears nothing of it for this long,
    in seconds."""
    attempts: int = 5
    """How often an item is begun that fails, or that the instances it runs on do not survive; then it
    fails."""
    retry_first_s: float = 1.0
    """Pause before an item is begun again, in seconds; each further one is twice as long."""
    retry_longest_s: float = 60.0
    """Longest such pause, in seconds."""
    ahead: int = 64
    """Most items of one model that this router claims beyond what instances have credits for now, so that a
    slot that comes free is filled at once."""
    memory_bytes: int = 256 << 20
    """Bodies of items in work that this router holds in memory before it claims no more, in bytes."""
    starvation_s: float = 3600.0
    """A batch whose turn has not come for this long gets a small share of the work ahead of its turn, in
    seconds."""
    starving_every: int = 16
    """That share: one item in so many."""
    items_per_batch: int = 1_000_000
    """Most items of one batch; 0: no limit."""
    queued_items: int = 20_000_000
    """Most items that wait, over all batches; 0: no limit."""
    open_batches: int = 100_000
    """Most batches that have not ended; 0: no limit."""
    stored_bytes: int = 0
    """Most bytes of items, checkpoints, results and files; 0: no limit."""
    body_bytes: int = 4 << 20
    """Largest item, in bytes."""
    receive_s: float = 86_400.0
    """A batch whose items have stopped coming before the last one is discarded after this time, in
    seconds."""
    retention_s: float = 30 * 86_400.0
    """How long a batch is kept once it has ended, and a file that was handed in, in seconds."""
    upload_s: float = 600.0
    """A file of which nothing has come for this long before its end is forgotten, in seconds."""

    def __post_init__(self) -> None:
        """Refuses values that cannot work. Raises ValueError."""
        if self.store and not self.store.startswith(_SCHEMES):
            raise ValueError(f"store: must begin with one of {', '.join(_SCHEMES)}, not {self.store!r}")
        if self.store in ("sqlite:", "sqlite::memory:"):
            raise ValueError(f"store: must name a file, sqlite:PATH, not {self.store!r}")
        for key in _AT_LEAST_ONE:
            if getattr(self, key) < (2 if key == "starving_every" else 1):
                raise ValueError(f"{key}: must be >= {2 if key == 'starving_every' else 1}")
        for one in fields(self):
            if one.name.endswith("_s") and not getattr(self, one.name) > 0:
                raise ValueError(f"{one.name}: must be > 0, not {getattr(self, one.name):g}")
        for key in ("items_per_batch", "queued_items", "open_batches", "stored_bytes"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: must be >= 0, not {getattr(self, key)}")
        if self.retry_longest_s < self.retry_first_s:
            raise ValueError(f"retry_longest_s: must be >= retry_first_s ({self.retry_first_s:g})")

    @property
    def limits(self) -> Limits:
        """What the queue takes."""
        return Limits(
            items_per_batch=self.items_per_batch,
            queued_items=self.queued_items,
            open_batches=self.open_batches,
            stored_bytes=self.stored_bytes,
            body_bytes=self.body_bytes,
            attempts=self.attempts,
            receive_s=self.receive_s,
            retention_s=self.retention_s,
            upload_s=self.upload_s,
        )
