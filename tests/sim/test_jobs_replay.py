"""What `chiron sim replay` tells of a trace that is not as it should be."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.chiron_command import only_error, simulate

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"


def replay(file: Path, rows: list[str], *options: object) -> tuple[object, ...]:
    file.write_text("\n".join([HEADER, *rows]), encoding="utf-8")
    return ("replay", file, "--format", "burstgpt", "--profile", "toy", *options)


def test_rows_without_a_request_are_counted_by_their_reason(tmp_path: Path) -> None:
    rows = ["0,C,5,6,11,x", "1,C,5,0,5,x", "2,C,5,0.0,5,x"]

    done = simulate(*replay(tmp_path / "t.csv", rows, "--json", "-"))

    reason = "Response tokens 0: it failed when it was recorded"
    assert done.stderr == f"warning: 2 rows of traces left out: {reason}\n"
    assert json.loads(done.stdout)["workload"]["skipped"] == {reason: 2}
    assert json.loads(done.stdout)["workload"]["skipped_rows"] == 2


def test_a_rate_that_leaves_no_request_names_its_option(tmp_path: Path) -> None:
    trace = replay(tmp_path / "t.csv", ["0,C,5,6,11,x", "1,C,5,6,11,x"], "--rate", "1e-9")

    assert only_error(simulate(*trace), 2) == (
        f"--rate: at 1e-09 per second no request of {tmp_path / 't.csv'} is left"
    )


def test_a_trace_of_many_days_is_told_before_it_is_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Raises:\n    def decide(self, snapshot):\n        1 / 0\n")
    trace = replay(tmp_path / "t.csv", ["0,C,5,6,11,x", "129600,C,5,6,11,x"], "--autoscaler", "mine:Raises")

    warning, failure = simulate(*trace, folder=tmp_path).stderr.splitlines()

    assert warning.startswith("warning: 1.5 days of requests: ")
    assert "mine:Raises failed at 1 s" in failure
