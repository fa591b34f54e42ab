"""What a batch's header must be, and the batch that it describes. Pure."""

from __future__ import annotations

import math
import re
import uuid

from chiron.auth.callers import Caller
from chiron.batch.records import Limits, NewBatch, TenantLimits
from chiron.requests.validation import MAX_PRIORITY, Violation
from chiron.rpc.errors import ChironError, Reason
from chiron.v1 import access_pb2, types_pb2
from chiron.v1 import batch_pb2 as pb

LONGEST_DEADLINE_S = 10 * 365 * 86_400.0
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
_BATCH_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def check_header(header: pb.BatchHeader, limits: Limits) -> list[Violation]:
    """Every violation of a header; empty: none."""
    found: list[Violation] = []
    if header.batch_id and not _BATCH_ID.fullmatch(header.batch_id):
        found.append(("batch_id", "must be 1 to 128 characters of [A-Za-z0-9._:-]"))
    deadline_s = header.deadline_s
    if not (math.isfinite(deadline_s) and 0 < deadline_s <= LONGEST_DEADLINE_S):
        found.append(
            ("deadline_s", f"must be above 0 and at most {LONGEST_DEADLINE_S:g}, not {deadline_s:g}")
        )
    if header.late not in pb.LatePolicy.values():
        found.append(("late", f"unknown value {header.late}"))
    if header.invalid_items not in pb.InvalidItemPolicy.values():
        found.append(("invalid_items", f"unknown value {header.invalid_items}"))
    if abs(header.priority) > MAX_PRIORITY:
        found.append(("priority", f"must be -{MAX_PRIORITY} to {MAX_PRIORITY}, not {header.priority}"))
    if limits.items_per_batch and header.items > limits.items_per_batch:
        found.append(("items", f"must be at most {limits.items_per_batch}, not {header.items}"))
    return [(f"header.{field}", text) for field, text in [*found, *_check_metadata(header)]]


def _check_metadata(header: pb.BatchHeader) -> list[Violation]:
    found: list[Violation] = []
    if len(header.metadata) > MOST_METADATA:
        found.append(("metadata", f"must have at most {MOST_METADATA} entries, not {len(header.metadata)}"))
    for key, value in header.metadata.items():
        if not 0 < len(key) <= LONGEST_KEY or len(value) > LONGEST_VALUE:
            text = f"a key has 1 to {LONGEST_KEY} characters, a value at most {LONGEST_VALUE}: {key[:80]!r}"
            found.append(("metadata", text))
        elif "\0" in key or "\0" in value:
            found.append(("metadata", f"must not hold the character NUL: {key!r}"))
    return found


def check_caller(header: pb.BatchHeader, caller: Caller) -> None:
    """Raises ChironError for what the caller may never hand in: NOT_ALLOWED, QUOTA_EXCEEDED."""
    caller.check_class(types_pb2.REQUEST_CLASS_BATCH, header.priority)
    most = caller.tenant.quota.batch_items
    if most and header.items > most:
        text = f"the batch has {header.items} items; the tenant's quota is {most} that wait at a time"
        raise ChironError(Reason.QUOTA_EXCEEDED, text)


def new_batch(header: pb.BatchHeader, tenant: str) -> NewBatch:
    """The batch that a valid header describes; without an id it gets one."""
    return NewBatch(
        batch_id=header.batch_id or f"batch-{uuid.uuid4().hex}",
        tenant=tenant,
        deadline_s=header.deadline_s,
        expire_late=header.late == pb.LATE_POLICY_EXPIRE,
        fail_invalid=header.invalid_items == pb.INVALID_ITEM_POLICY_FAIL_ITEM,
        priority=header.priority,
        metadata=dict(header.metadata),
        items=header.items,
    )


def tenant_limits(tenant: access_pb2.Tenant | None) -> TenantLimits:
    """How much of the queue a tenant may have; None: tenancy is off."""
    if tenant is None:
        return TenantLimits()
    quota = tenant.quota
    return TenantLimits(
        queued_items=quota.batch_items, open_batches=quota.batch_open, stored_bytes=quota.batch_bytes
    )
