"""Whether the queue, or a tenant, has room."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.batch.contract import QueueFullError, TenantFullError
from chiron.batch.records import Limits, TenantLimits
from chiron.batch.sqlite.transaction import Transaction


def check_limits(
    tx: Transaction, tenant: str, limits: TenantLimits, *, batches: int = 0, items: int = 0, size: int = 0
) -> None:
    """Raises QueueFullError or TenantFullError where so much more does not fit."""
    own = tx.db.execute(
        "SELECT open_batches, queued, stored_bytes FROM tenants WHERE tenant = ?", (tenant,)
    ).fetchone()
    all_of = tx.db.execute("SELECT open_batches, queued, stored_bytes FROM store").fetchone()
    more = (batches, items, size)
    if text := _exceeded(limits, own or (0, 0, 0), more):
        raise TenantFullError(f"tenant {tenant!r} has {text}")
    if text := _exceeded(tx.limits, all_of, more):
        raise QueueFullError(f"the queue has {text}")


def _exceeded(limits: Limits | TenantLimits, used: Sequence[int], more: Sequence[int]) -> str:
    names = ("open batches", "queued items", "stored bytes")
    most = (limits.open_batches, limits.queued_items, limits.stored_bytes)
    for name, bound, held, added in zip(names, most, used, more, strict=True):
        if bound and added and held + added > bound:
            return f"{held} {name}; {added} more exceed the limit of {bound}"
    return ""
