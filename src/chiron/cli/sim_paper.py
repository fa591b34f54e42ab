"""`chiron sim paper`: the paper's evaluation, simulated again, and the report on it."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from chiron.cli.runner import EXIT_FAILED, CliError
from chiron.config import ConfigError
from chiron.sim.paper.evaluation import Evaluation, Request, again
from chiron.sim.paper.experiment import TUNING_SEEDS, Size
from chiron.sim.paper.experiments import chosen
from chiron.sim.paper.facts import gathered
from chiron.sim.paper.plan import Job, Plan
from chiron.sim.paper.report import Report, write_report
from chiron.sim.paper.results import failures, parts
from chiron.sim.paper.runner import Ended
from chiron.sim.plots import check_drawing

_LINE_EVERY_S = 10.0
"""Between two lines of progress where there is no terminal to redraw."""


@dataclass(frozen=True, slots=True)
class PaperOptions:
    """What the command line says."""

    out: Path
    quick: bool
    traces: Path | None
    only: str | None
    case: str | None
    seeds: int | None
    jobs: int
    goals_full: bool
    dry_run: bool
    markdown: Path | None


def run_paper(options: PaperOptions) -> None:
    """The command. Raises ConfigError, CliError; typer.Exit(1) when a run failed."""
    size = Size("quick" if options.quick else "full", options.seeds, options.goals_full)
    experiments = chosen(options.only)
    if options.case is not None and (options.only is None or len(experiments) != 1):
        raise ConfigError("--case: needs --only with the one experiment that the case is of")
    began = time.monotonic()
    evaluation = Evaluation(Request(options.out, experiments, size, options.traces, options.jobs))
    if options.case is not None:
        _one_case(evaluation, options.case)
        return
    console = Console(stderr=True)
    show_plan(evaluation.plan, console)
    if options.dry_run:
        return
    check_drawing()
    with _writing(options.out):
        with _shown(evaluation.plan, console) as progress:
            results = evaluation.run(progress.ended)
        found = results.told
        if results.ended_by is not None:
            kept = f"{progress.runs - progress.failed} finished runs are in {options.out / 'cache'}"
            _say(console, f"ended early: {kept}; the same command goes on from there")
            _say(console, "writing the report on what there is; end the program once more to do without")
        failed = failures(found)
        seeds = {job.case.seed for told in found for job in told.track.jobs} - set(TUNING_SEEDS)
        wall_s = time.monotonic() - began
        facts = gathered(
            shlex.join(["chiron", *sys.argv[1:]]),
            size.name,
            sorted(seeds),
            wall_s,
            progress.runs,
            progress.cached,
            failed,
            results.unfinished,
        )
        files = write_report(Report(facts, parts(found)), options.out, options.markdown)
    for told in found:
        if told.skipped:
            print(f"skipped: {told.track.experiment.name}: {told.skipped}", file=sys.stderr)
    if results.ended_by is not None:
        raise results.ended_by
    last = {
        "out": str(options.out),
        "results": str(results.file),
        "report": str(files[0]),
        "runs": progress.runs,
        "cached": progress.cached,
        "failed": len(failed),
        "skipped": [told.track.experiment.name for told in found if told.skipped],
        "requests": round(progress.requests),
        "cpu_s": round(progress.cpu_s, 1),
        "wall_s": round(wall_s, 1),
    }
    print(json.dumps(last), flush=True)
    if failed:
        print(f"error: {len(failed)} failed; the same command tries them again", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CliError(f"cannot write {error.filename or out}: {error.strerror}") from error


def _one_case(evaluation: Evaluation, key: str) -> None:
    job = evaluation.find(key, lambda _job, _ended: None)
    case = job.case
    print(f"{case.experiment} {case.key}", file=sys.stderr)
    figures = {
        "experiment": case.experiment,
        "key": case.key,
        "labels": dict(case.labels),
        "policy": case.policy.label,
        "seed": case.seed,
        "figures": again(job),
    }
    print(json.dumps(figures, allow_nan=False))


def show_plan(plan: Plan, console: Console) -> None:
    """Prints what is going to be run, and how long that will take."""
    table = Table("experiment", "runs", "finished before", "simulated requests", "shows")
    for name in ("runs", "finished before", "simulated requests"):
        next(column for column in table.columns if column.header == name).justify = "right"
    for share in plan.shares:
        later = f" (of which about {share.later} later)" if share.later else ""
        table.add_row(
            share.experiment.name,
            "–" if share.skipped else f"{share.runs}{later}",
            "–" if share.skipped else str(share.cached),
            "–" if share.skipped else f"{share.requests:,.0f}",
            f"skipped: {share.skipped}" if share.skipped else share.experiment.title,
        )
    wide = console if console.is_terminal else Console(file=console.file, width=160)
    wide.print(table)
    for share in plan.shares:
        if share.left_out:
            _say(wide, f"left out of {share.experiment.name}: {share.left_out}")
    calibrated = plan.speed.calibrated_per_s
    how = "from the runs in the cache" if calibrated is None else "from a short run just now"
    _say(
        wide,
        f"{plan.runs:,} runs of "
        f"{sum(share.requests for share in plan.shares):,.0f} requests; {plan.speed.requests_per_s:,.0f} "
        f"requests per CPU-second {how}; about {duration(plan.expected_s)} on {plan.workers} "
        f"{'core' if plan.workers == 1 else 'cores'} for what is not finished",
    )


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time for people: seconds below two minutes, minutes below three hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


class _Shown:
    """Counts what has ended, and shows it."""

    def __init__(self, plan: Plan, console: Console, bar: Progress, task: TaskID) -> None:
        self.runs = self.cached = self.failed = 0
        self.requests = self.cpu_s = self._expected_s = 0.0
        self._plan, self._console, self._bar, self._task = plan, console, bar, task
        self._began = self._last = time.monotonic()

    def ended(self, job: Job, ended: Ended) -> None:
        """A run has ended, or was there already."""
        name = f"{job.case.experiment} {job.case.key}"
        self.runs += 1
        if ended.cached:
            self.cached += 1
        elif ended.entry is None:
            self.failed += 1
            _say(self._console, f"failed: {name}: {ended.failure}")
        else:
            self.requests += ended.entry.requests
            self.cpu_s += ended.entry.cpu_s
        if not ended.cached:
            self._expected_s += job.cpu_s
        total = max(self.runs, self._plan.runs)
        now = time.monotonic()
        passed_s = now - self._began
        share = max(0.0, self._plan.to_do_cpu_s / self._expected_s - 1) if self._expected_s else 0.0
        left = f"about {duration(share * passed_s)} left"
        described = f"{job.case.experiment}, {left}"
        self._bar.update(self._task, completed=self.runs, total=total, description=described)
        if self._bar.disable and not ended.cached and now - self._last >= _LINE_EVERY_S:
            self._last = now
            told = f"{self.runs} of about {total} runs after {duration(passed_s)}"
            _say(self._console, f"{told}, {left}: {name}")


@contextmanager
def _shown(plan: Plan, console: Console) -> Iterator[_Shown]:
    """Shows progress."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield _Shown(plan, console, bar, bar.add_task("runs", total=None))
