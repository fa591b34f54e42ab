"""Batches and usage as callers get them. Pure."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from chiron.batch.records import Batch, TenantUsage
from chiron.v1 import batch_pb2 as pb


def batch_message(batch: Batch) -> pb.Batch:
    """A batch without its estimate."""
    counts = batch.counts
    return pb.Batch(
        batch_id=batch.batch_id,
        tenant=batch.tenant,
        state=pb.BatchState.ValueType(int(batch.state)),
        created=timestamp(batch.created),
        deadline=timestamp(batch.deadline),
        ended=None if batch.ended is None else timestamp(batch.ended),
        expires=None if batch.expires is None else timestamp(batch.expires),
        late=pb.LATE_POLICY_EXPIRE if batch.expire_late else pb.LATE_POLICY_FINISH,
        priority=batch.priority,
        metadata=batch.metadata,
        cancelled=batch.cancelled,
        progress=pb.BatchProgress(
            items_received=counts.received,
            items_contiguous=counts.contiguous,
            queued=counts.queued,
            running=counts.running,
            succeeded=counts.succeeded,
            failed=counts.failed,
            cancelled=counts.cancelled,
            expired=counts.expired,
            late=counts.late,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
        ),
    )


def usage_message(usage: TenantUsage) -> pb.TenantUsage:
    """What one tenant has in the queue."""
    return pb.TenantUsage(
        tenant=usage.tenant,
        open_batches=usage.open_batches,
        queued=usage.queued,
        running=usage.running,
        stored_bytes=usage.stored_bytes,
        succeeded=usage.succeeded,
        failed=usage.failed,
        completion_tokens=usage.completion_tokens,
    )


def timestamp(instant: float) -> Timestamp:
    """Seconds since the epoch, to the microsecond."""
    message = Timestamp()
    message.FromMicroseconds(round(instant * 1e6))
    return message
