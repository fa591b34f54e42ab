"""A batch as OpenAI has it. Pure."""

from __future__ import annotations

from typing import Any

from chiron.batch.records import Batch, BatchCounts, BatchState
from services.router.http.batches.faults import errors_of
from services.router.http.batches.source import Source

_OPEN = {
    BatchState.RECEIVING: "validating",
    BatchState.ACTIVE: "in_progress",
    BatchState.CANCELLING: "cancelling",
}


def status_of(batch: Batch) -> str:
    """Its status. One that has ended is not over before its files are there."""
    if batch.state is not BatchState.ENDED:
        return _OPEN[batch.state]
    if batch.refusal:
        return "failed"
    if batch.closed is None:
        return "cancelling" if batch.cancelled else "finalizing"
    if batch.cancelled:
        return "cancelled"
    return "expired" if batch.counts.expired else "completed"


def batch_object(batch: Batch) -> dict[str, Any]:
    """The batch. `completed` counts the lines of its output file, `failed` those of its error file."""
    source, status = Source.of(batch.source), status_of(batch)
    # Before it is accepted nobody knows how many there will be.
    counts = BatchCounts() if batch.sealed is None else batch.counts

    def when(one: str) -> int | None:
        return _instant(batch.closed) if status == one else None

    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": source.endpoint,
        "model": source.model or None,
        "errors": errors_of(batch.refusal) if batch.refusal else None,
        "input_file_id": source.input_file,
        "completion_window": source.window,
        "status": status,
        "output_file_id": batch.output_file or None,
        "error_file_id": batch.error_file or None,
        "created_at": _instant(batch.created),
        "in_progress_at": _instant(batch.sealed),
        "expires_at": _instant(batch.deadline),
        "finalizing_at": None if batch.refusal else _instant(batch.ended),
        "completed_at": when("completed"),
        "failed_at": when("failed"),
        "expired_at": when("expired"),
        "cancelling_at": _instant(batch.cancelled_at),
        "cancelled_at": when("cancelled"),
        "request_counts": {
            "total": counts.received,
            "completed": counts.succeeded,
            "failed": counts.failed + counts.expired + counts.cancelled,
        },
        "usage": {
            "input_tokens": counts.prompt_tokens,
            "output_tokens": counts.completion_tokens,
            "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        },
        "metadata": dict(batch.metadata) or None,
    }


def _instant(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
