"""Whether the queue, or a tenant, has room."""

from __future__ import annotations

from chiron.batch.contract import QueueFullError, TenantFullError
from chiron.batch.receipt import exceeded
from chiron.batch.records import TenantLimits
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
    if text := exceeded(limits, own or (0, 0, 0), more):
        raise TenantFullError(f"tenant {tenant!r} has {text}")
    if text := exceeded(tx.limits, all_of, more):
        raise QueueFullError(f"the queue has {text}")
