"""Turns the wire's messages about batches into records."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from chiron.client.assembly import FINISH_REASONS, parsed_output, token_logprobs
from chiron.client.batch.records import (
    Batch,
    BatchProgress,
    BatchState,
    DeadlineOutlook,
    InvalidItemPolicy,
    ItemFailure,
    ItemOutput,
    ItemResult,
    ItemState,
    LatePolicy,
    TenantUsage,
)
from chiron.client.errors import ProtocolError
from chiron.client.output import Choice, Timing, Usage
from chiron.v1 import batch_pb2 as pb
from chiron.v1 import inference_pb2

_BATCH_STATES = {
    pb.BATCH_STATE_RECEIVING: BatchState.RECEIVING,
    pb.BATCH_STATE_ACTIVE: BatchState.ACTIVE,
    pb.BATCH_STATE_CANCELLING: BatchState.CANCELLING,
    pb.BATCH_STATE_ENDED: BatchState.ENDED,
}
_ITEM_STATES = {
    pb.ITEM_STATE_SUCCEEDED: ItemState.SUCCEEDED,
    pb.ITEM_STATE_FAILED: ItemState.FAILED,
    pb.ITEM_STATE_CANCELLED: ItemState.CANCELLED,
    pb.ITEM_STATE_EXPIRED: ItemState.EXPIRED,
}
_OUTLOOKS = {
    pb.DEADLINE_OUTLOOK_HOLDS: DeadlineOutlook.HOLDS,
    pb.DEADLINE_OUTLOOK_AT_RISK: DeadlineOutlook.AT_RISK,
    pb.DEADLINE_OUTLOOK_MISSES: DeadlineOutlook.MISSES,
}
LATE_POLICIES = {
    LatePolicy.FINISH: pb.LATE_POLICY_FINISH,
    LatePolicy.EXPIRE: pb.LATE_POLICY_EXPIRE,
}
INVALID_ITEM_POLICIES = {
    InvalidItemPolicy.REFUSE: pb.INVALID_ITEM_POLICY_REFUSE_BATCH,
    InvalidItemPolicy.FAIL: pb.INVALID_ITEM_POLICY_FAIL_ITEM,
}


def batch_of(message: pb.Batch) -> Batch:
    """A batch. Raises ProtocolError for a state that this client does not know."""
    state = _BATCH_STATES.get(message.state)
    if state is None:
        raise ProtocolError(f"unknown state {message.state} of a batch", reason="PROTOCOL_ERROR")
    return Batch(
        batch_id=message.batch_id,
        tenant=message.tenant,
        state=state,
        created=_instant(message.created),
        deadline=_instant(message.deadline),
        ended=_instant(message.ended) if message.HasField("ended") else None,
        expires=_instant(message.expires) if message.HasField("expires") else None,
        on_late=LatePolicy.EXPIRE if message.late == pb.LATE_POLICY_EXPIRE else LatePolicy.FINISH,
        priority=message.priority,
        metadata=dict(message.metadata),
        cancelled=message.cancelled,
        progress=_progress(message.progress),
    )


def _progress(message: pb.BatchProgress) -> BatchProgress:
    return BatchProgress(
        items_received=message.items_received,
        items_contiguous=message.items_contiguous,
        queued=message.queued,
        running=message.running,
        succeeded=message.succeeded,
        failed=message.failed,
        cancelled=message.cancelled,
        expired=message.expired,
        late=message.late,
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        estimated_end=_instant(message.estimated_end) if message.HasField("estimated_end") else None,
        outlook=_OUTLOOKS.get(message.outlook, DeadlineOutlook.UNKNOWN),
    )


def result_of(message: pb.ItemResult) -> ItemResult:
    """A result. Raises ProtocolError for a state that this client does not know."""
    state = _ITEM_STATES.get(message.state)
    if state is None:
        raise ProtocolError(f"unknown state {message.state} of an item", reason="PROTOCOL_ERROR")
    error = message.error
    return ItemResult(
        number=message.number,
        index=message.index,
        custom_id=message.custom_id,
        state=state,
        output=_output(message.output) if message.HasField("output") else None,
        error=ItemFailure(error.reason, error.message) if message.HasField("error") else None,
        recorded=_instant(message.recorded),
        late=message.late,
        attempts=message.attempts,
    )


def _output(message: pb.ItemOutput) -> ItemOutput:
    usage = message.usage
    return ItemOutput(
        choices=tuple(_choice(index, choice) for index, choice in enumerate(message.choices)),
        usage=Usage(usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens),
        timing=_timing(message.timing),
        model=message.model,
        spec_version=message.spec_version,
    )


def _choice(index: int, message: pb.ItemChoice) -> Choice:
    return Choice(
        index=index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(map(token_logprobs, message.logprobs)),
        finish_reason=FINISH_REASONS.get(message.finish_reason),
        stop_match=message.stop_match,
        parsed=parsed_output(message.parsed) if message.HasField("parsed") else None,
    )


def _timing(message: inference_pb2.Timing) -> Timing:
    return Timing(
        ttft_ms=message.ttft_ms,
        queue_ms=message.queue_ms,
        itl_mean_ms=message.itl_mean_ms,
        itl_max_ms=message.itl_max_ms,
        total_ms=message.total_ms,
        preemptions=message.preemptions,
        instance_id=message.instance_id,
        client_ttft_ms=0.0,
        client_itl_mean_ms=0.0,
        client_itl_max_ms=0.0,
        client_total_ms=0.0,
    )


def usage_of(message: pb.TenantUsage) -> TenantUsage:
    """What one tenant has in the queue."""
    return TenantUsage(
        tenant=message.tenant,
        open_batches=message.open_batches,
        queued=message.queued,
        running=message.running,
        stored_bytes=message.stored_bytes,
        succeeded=message.succeeded,
        failed=message.failed,
        completion_tokens=message.completion_tokens,
    )


def _instant(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
