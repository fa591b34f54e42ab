"""Recordings as they are read: what counts once, what cannot be simulated, what is no recording."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from chiron.sim.recorded.requests import read_recording
from chiron.sim.trace_formats import TraceError

STARTED = "2026-03-01T12:00:00+00:00"
ZERO = 1772366400.0


def line(key: str, at: float, **fields: Any) -> dict[str, Any]:
    return {
        "at": at,
        "id": key,
        "model": "m",
        "class": "interactive",
        "tenant": 0,
        "priority": 0,
        "prompt": 10,
        "choices": 1,
        "slo": {"ttft_ms": 100, "itl_ms": 20},
        "end": "ok",
        "output": 5,
        "cached": 0,
        "ttft_ms": 50,
        "itl_mean_ms": 10,
        "took_s": 0.1,
        "attempts": 1,
        "resumes": 0,
        **fields,
    }


def write(folder: Path, name: str, *lines: dict[str, Any] | str, **header: Any) -> Path:
    head = {"chiron_recording": 1, "started": STARTED, "router": "r", "models": {}, **header}
    file = folder / f"requests-{name}.jsonl"
    texts = [one if isinstance(one, str) else json.dumps(one) for one in (head, *lines)]
    file.write_text("\n".join(texts) + "\n")
    return file


def test_requests_of_all_files_are_in_order_of_arrival_by_one_clock(tmp_path: Path) -> None:
    write(tmp_path, "a", line("2", 5.0), line("1", -1.0), {"left_out": 3})
    write(tmp_path, "b", line("3", 1.0), started="2026-03-01T12:00:02+00:00")
    write(tmp_path, "empty").write_text("")
    found = read_recording(tmp_path)
    assert [(one.key, one.arrived - ZERO) for one in found.requests] == [("1", -1), ("3", 3), ("2", 5)]
    assert (found.started - ZERO, found.left_out, found.bad_rows) == (0, 3, ())


def test_a_request_that_two_routers_know_counts_once_as_it_ended_best(tmp_path: Path) -> None:
    gone = {"end": "unknown", "output": 0}
    write(tmp_path, "a", line("1", 0.0, **gone), line("2", 0.0, end="failed", output=2))
    write(tmp_path, "b", line("2", 0.0, end="failed", output=4), line("1", 0.0))
    found = read_recording(tmp_path).requests
    assert {one.key: (one.end, one.output_tokens) for one in found} == {"1": ("ok", 5), "2": ("failed", 4)}


def test_what_has_no_length_is_counted_by_its_reason_and_not_replayed(tmp_path: Path) -> None:
    refused = line("1", 0.0, end="refused", reason="QUEUE_FULL")
    del refused["output"]
    write(tmp_path, "a", refused, line("2", 1.0, end="cancelled", output=3))
    found = read_recording(tmp_path)
    assert [one.key for one in found.replayed] == ["2"]
    assert found.skipped == {"refused, QUEUE_FULL: nobody knows how long its answer would have been": 1}


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, True),
        ({"ttft_ms": 100.1}, False),
        ({"itl_mean_ms": 20.1}, False),
        ({"end": "failed"}, False),
        ({"slo": {"itl_ms": 20}, "ttft_ms": 9999}, True),
        ({"class": "batch", "deadline_s": 60, "took_s": 59, "ttft_ms": 9999}, True),
        ({"class": "batch", "deadline_s": 60, "took_s": 61}, False),
    ],
)
def test_promises_are_judged_by_their_class(tmp_path: Path, fields: dict[str, Any], kept: bool) -> None:
    [one] = read_recording(write(tmp_path, "a", line("1", 0.0, **fields))).requests
    assert one.has_slo
    assert one.kept is kept


def test_without_a_promise_there_is_none_to_keep(tmp_path: Path) -> None:
    write(tmp_path, "a", line("1", 0.0, slo={}), line("2", 0.0, **{"class": "batch"}))
    one, other = read_recording(tmp_path).requests
    assert [one.has_slo, other.has_slo] == [False, False]
    assert other.deadline_s == math.inf


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "TypeError"),
        ({"at": 1}, "KeyError"),
        (line("1", 0.0, **{"class": "other"}), "class 'other'"),
        (line("1", 0.0, end="well"), "end 'well'"),
        (line("1", 0.0, prompt=-1), "prompt is -1"),
        (line("1", 0.0, output="many"), "output is 'many'"),
        (line("1", 0.0, output=True), "output is True"),
        (line("1", 0.0, model=""), "model is empty"),
    ],
)
def test_a_malformed_line_is_named_and_left_out_or_an_error(tmp_path: Path, bad: Any, why: str) -> None:
    file = write(tmp_path, "a", line("9", 0.0), bad)
    [row] = read_recording(file).bad_rows
    assert (row.file, row.line) == (file, 3)
    assert why in row.problem
    with pytest.raises(TraceError, match=r"requests-a\.jsonl:3: "):
        read_recording(file, strict=True)


def test_what_is_no_recording_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no file of the name requests-"):
        read_recording(tmp_path)
    with pytest.raises(TraceError, match="No such file"):
        read_recording(tmp_path / "nothing.jsonl")
    with pytest.raises(TraceError, match="first line is no header"):
        read_recording(write(tmp_path, "a", started="noon"))
    with pytest.raises(TraceError, match="version 2 of recordings is not known"):
        read_recording(write(tmp_path, "b", chiron_recording=2))
    with pytest.raises(TraceError, match="no request in it"):
        read_recording(write(tmp_path, "c"))
    with pytest.raises(TraceError, match="known lengths"):
        read_recording(write(tmp_path, "d", line("1", 0.0, output=0, end="cancelled")))
