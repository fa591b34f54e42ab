"""How a batch is told to people and programs."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from rich.console import Console

from chiron.cli.batch.bar import Bar, Lines
from chiron.cli.batch.telling import batch_json, counts_of, exit_status, line_of, outlook_of, result_json
from chiron.client import (
    Batch,
    BatchProgress,
    BatchState,
    Choice,
    DeadlineOutlook,
    FinishReason,
    ItemOutput,
    ItemResult,
    ItemState,
    LatePolicy,
    Timing,
    Usage,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def batch(**progress: object) -> Batch:
    return Batch(
        batch_id="b",
        tenant="",
        state=BatchState.ACTIVE,
        created=NOW,
        deadline=NOW + timedelta(hours=2),
        ended=None,
        expires=None,
        on_late=LatePolicy.FINISH,
        priority=0,
        metadata={},
        cancelled=False,
        progress=BatchProgress(items_received=10, **progress),  # type: ignore[arg-type]
    )


def test_the_exit_status_tells_how_it_went() -> None:
    assert exit_status(batch(succeeded=10)) == 0
    assert exit_status(batch(succeeded=10, late=1)) == 4
    for name in ("failed", "expired", "cancelled"):
        assert exit_status(batch(succeeded=9, late=3, **{name: 1})) == 3


def test_counts_and_deadline_are_one_line() -> None:
    assert counts_of(batch(succeeded=3, failed=1, running=2)) == "4/10, 1 failed, 2 running"
    assert line_of(batch(), NOW) == "b: active, 0/10; deadline in 2h00m"
    expected = batch(outlook=DeadlineOutlook.AT_RISK, estimated_end=NOW + timedelta(minutes=90))
    assert outlook_of(expected, NOW) == "deadline in 2h00m (at risk), done in about 1h30m"
    assert outlook_of(batch(), NOW + timedelta(hours=3)) == "deadline passed 1h00m ago"
    ended = replace(batch(succeeded=10), state=BatchState.ENDED)
    assert outlook_of(ended, NOW) == "deadline kept"
    assert outlook_of(replace(ended, cancelled=True), NOW) == "cancelled"
    assert outlook_of(replace(ended, progress=BatchProgress(expired=1)), NOW) == "deadline missed"


def test_json_holds_no_objects() -> None:
    shown = batch_json(batch(estimated_end=NOW))
    assert (shown["created"], shown["ended"], shown["state"]) == ("2026-05-01T12:00:00+00:00", None, "active")
    assert shown["progress"]["estimated_end"] == "2026-05-01T12:00:00+00:00"


def test_a_line_of_results_leaves_out_what_says_nothing() -> None:
    timing = Timing(1, 1, 1, 1, 1, 0, "i", 0, 0, 0, 0)
    choice = Choice(0, "", (1, 2), (), FinishReason.STOP, "")
    output = ItemOutput((choice,), Usage(3, 0, 2), timing, "toy", 1)
    result = ItemResult(1, 0, "a", ItemState.SUCCEEDED, output, None, NOW, late=False, attempts=1)
    line = result_json("b", result)
    assert line["choices"] == [{"index": 0, "text": "", "token_ids": (1, 2), "finish_reason": "stop"}]
    assert (line["text"], line["usage"]["prompt_tokens"], "error" in line) == ("", 3, False)


def test_lines_come_with_each_state_and_now_and_then() -> None:
    said: list[str] = []
    time = [0.0]
    with Lines(said.append, lambda: time[0]) as lines:
        lines.sent(500)
        lines.update(batch())
        lines.update(batch(succeeded=1))
        assert len(said) == 1
        time[0] = 11.0
        lines.update(batch(succeeded=2))
        assert len(said) == 2
        lines.update(replace(batch(succeeded=10), state=BatchState.ENDED))
    assert [line.split(",")[0] for line in said] == ["b: active", "b: active", "b: ended"]


def test_a_bar_shows_how_far_it_is() -> None:
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=160)
    with Bar(console) as bar:
        bar.sent(7)
        bar.update(batch(succeeded=3, failed=1))
        bar._progress.refresh()
        assert "4/10" in drawn.getvalue()
        assert "1 without an answer" in drawn.getvalue()
