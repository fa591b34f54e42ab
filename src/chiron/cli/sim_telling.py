"""What the `chiron sim` commands tell beside their findings: what was left out, and how far a run is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chiron.cli.sim_options import OutputOptions
from chiron.sim.runs import MALFORMED_NAMED
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.traces import days

_BAD_ROWS_SHOWN = 10
_LONG_S = 86_400.0
"""Of requests in a trace, after which a command says that it will take long."""
_UNCUT = 10_000
"""Columns of a pipe or a file: more than any table has, so that no figure is cut."""
Told = Callable[[float, int, int], None]


def report_reading(reading: Reading, scenario: Scenario) -> None:
    """Says on stderr what was left out or changed of what the scenario asks for."""
    for bad in reading.bad_rows[:_BAD_ROWS_SHOWN]:
        print(f"warning: {bad}", file=sys.stderr)
    if reading.bad_rows:
        more = len(reading.bad_rows) > _BAD_ROWS_SHOWN
        where = f" (--json names the first {MALFORMED_NAMED:,})" if more else ""
        print(f"warning: {len(reading.bad_rows)} malformed rows left out{where}", file=sys.stderr)
    for reason, count in reading.skipped.items():
        print(f"warning: {count} rows of traces left out: {reason}", file=sys.stderr)
    span_s = float(reading.workload.arrival_s[-1])
    if scenario.replays and span_s > _LONG_S:
        print(
            f"warning: {days(span_s)} of requests: a day without any takes tens of seconds to simulate",
            file=sys.stderr,
        )
    if reading.shortened:
        print(
            f"warning: {reading.shortened} of {len(reading.workload)} requests cut to the longest context",
            file=sys.stderr,
        )
    horizon_s = scenario.settings.horizon_s
    late = 0 if horizon_s is None else int((reading.workload.arrival_s > horizon_s).sum())
    if late:
        print(
            f"warning: {late} of {len(reading.workload)} requests arrive after horizon_s = {horizon_s:g}: "
            "nothing serves them",
            file=sys.stderr,
        )
    if any(replay.format == "sharegpt" for replay in scenario.replays):
        print("warning: lengths are estimated, one token for 4 characters", file=sys.stderr)


@contextmanager
def progress_bar(output: OutputOptions, what: str) -> Iterator[Told]:
    """A bar on stderr, when it is a terminal; yields what to call with (simulated time, done, all)."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (output.progress and console.is_terminal),
    )
    with bar:
        task = bar.add_task(what, total=None)

        def told(_now_s: float, ended: int, total: int) -> None:
            bar.update(task, completed=ended, total=total)

        yield told


def wide_console() -> Console:
    """stdout, wide enough for the tables when it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNCUT)
