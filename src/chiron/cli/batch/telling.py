"""Batches as text: the words of tables, lines and JSON. Pure."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from chiron.cli.batch.durations import short
from chiron.client import Batch, BatchState, DeadlineOutlook, ItemResult

_SHOWN = ("failed", "expired", "cancelled", "late", "running")
EXIT_INCOMPLETE, EXIT_LATE = 3, 4
"""A batch has ended, and some items have no answer; or all have, some after the deadline."""


def exit_status(batch: Batch) -> int:
    """How a batch that has ended went."""
    progress = batch.progress
    if progress.failed or progress.cancelled or progress.expired:
        return EXIT_INCOMPLETE
    return EXIT_LATE if progress.late else 0


def counts_of(batch: Batch) -> str:
    """`340/1000, 2 failed, 12 running`; what is 0 is left out."""
    progress = batch.progress
    parts = [f"{progress.ended}/{progress.items_received}"]
    parts += [f"{count} {name}" for name in _SHOWN if (count := getattr(progress, name))]
    return ", ".join(parts)


def outlook_of(batch: Batch, now: datetime) -> str:
    """What is to be said of the deadline."""
    progress = batch.progress
    if batch.state is BatchState.ENDED and batch.cancelled:
        return "cancelled"
    if batch.state is BatchState.ENDED:
        kept = "missed" if progress.late or progress.expired else "kept"
        return f"deadline {kept}"
    left_s = (batch.deadline - now).total_seconds()
    text = f"deadline in {short(left_s)}" if left_s > 0 else f"deadline passed {short(-left_s)} ago"
    if progress.outlook is not DeadlineOutlook.UNKNOWN:
        text += f" ({progress.outlook.value})"
    if progress.estimated_end is not None:
        text += f", done in about {short((progress.estimated_end - now).total_seconds())}"
    return text


def line_of(batch: Batch, now: datetime) -> str:
    """A batch in one line."""
    return f"{batch.batch_id}: {batch.state.value}, {counts_of(batch)}; {outlook_of(batch, now)}"


def batch_json(batch: Batch) -> dict[str, Any]:
    """A batch for JSON."""
    return {name: _plain(value) for name, value in dataclasses.asdict(batch).items()}


def result_json(batch_id: str, result: ItemResult) -> dict[str, Any]:
    """A line of results."""
    line: dict[str, Any] = {
        "batch_id": batch_id,
        "number": result.number,
        "index": result.index,
        "custom_id": result.custom_id,
        "state": result.state.value,
        "late": result.late,
        "attempts": result.attempts,
        "recorded": result.recorded.isoformat(),
    }
    if result.output is not None:
        output = result.output
        line["model"] = output.model
        line["text"] = output.choices[0].text if output.choices else ""
        line["choices"] = [_choice(dataclasses.asdict(choice)) for choice in output.choices]
        line["usage"] = dataclasses.asdict(output.usage)
    if result.error is not None:
        line["error"] = dataclasses.asdict(result.error)
    return line


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    """Only what says something."""
    return {name: value for name, value in choice.items() if value or name in ("index", "text")}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return value.isoformat() if isinstance(value, datetime) else value
