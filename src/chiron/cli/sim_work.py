"""What the `chiron sim` commands do: read, simulate, and show."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chiron.cli.runner import EXIT_BAD_START, EXIT_FAILED, EXIT_INTERRUPTED, CliError
from chiron.cli.sim_options import OutputOptions, PartOptions, PolicyOptions, RunOutputOptions
from chiron.config import ConfigError
from chiron.policy.custom import PolicyError
from chiron.sim.compare import compare, model_ceilings
from chiron.sim.decision_log import DecisionLog
from chiron.sim.policies import PolicyChoice
from chiron.sim.report import ceiling_table, comparison_json, comparison_table, run_table
from chiron.sim.runs import MALFORMED_NAMED, OracleViolatedError, Run, run
from chiron.sim.scenario import Reading, Scenario, read_scenario, scenario_from
from chiron.sim.settings import InvalidSettingError
from chiron.sim.traces import days

_BAD_ROWS_SHOWN = 10
_LONG_S = 86_400.0
"""Of requests in a trace, after which a command says that it will take long."""
_PATIENCE_S = 5.0
"""Longest wait for each process and thread that ends with an interrupted command."""
_UNCUT = 10_000
"""Columns of a pipe or a file: more than any table has, so that no figure is cut."""
_EXIT_TERMINATED = 128 + signal.SIGTERM
_COMMAND_LINE = "command line"
_OPTION_OF_KEY = {
    "format": "format",
    "rate_per_s": "rate",
    "scaling": "scaling",
    "limit": "limit",
    "profile": "profile",
    "max_context_tokens": "max-context",
    "nodes": "nodes",
    "gpu_budget": "gpus",
    "gpus_per_node": "gpus",
    "price_per_gpu_hour": "price",
    "initial": "instances",
    "ttft_slo_s": "slo-ttft",
    "itl_slo_s": "slo-itl",
    "deadline_in_s": "deadline",
}
"""Options of `chiron sim replay` by the keys of a scenario."""
T = TypeVar("T")
Told = Callable[[float, int, int], None]


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """Which trace is served on what."""

    trace: Path
    trace_format: str
    rate_per_s: float | None
    scaling: str
    limit: int
    strict: bool
    profile: str
    max_context_tokens: int | None
    nodes: int
    gpus: int
    price: float | None
    instances: int
    slo_ttft_ms: float
    slo_itl_ms: float
    deadline_in_s: float | None


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Which policies serve which workloads."""

    scenario: Path
    policies: tuple[str, ...]
    seeds: int
    first_seed: int | None
    jobs: int
    ceiling: bool


def guarded(work: Callable[[], None]) -> None:
    """Runs a command and ends the process: expected failures are one line and an exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        work()
    except (ConfigError, InvalidSettingError, PolicyError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_BAD_START) from None
    except CliError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.status) from None
    except OracleViolatedError as error:
        print(f"error: a defect of the simulator, please report it: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None
    except BrokenProcessPool:
        print("error: a simulating process was killed; with less memory, try --jobs 1", file=sys.stderr)
        raise typer.Exit(EXIT_FAILED) from None
    except _Terminated:
        _leave(_EXIT_TERMINATED)
    except KeyboardInterrupt:
        _leave(EXIT_INTERRUPTED)


def _leave(status: int) -> NoReturn:
    """Ends the process in good order, but without waiting for ever for a pool's thread.

    A process that was ended in the middle of a result leaves that thread waiting for the other half.
    """
    for child in multiprocessing.active_children():
        child.join(_PATIENCE_S)
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join(_PATIENCE_S)
    if any(thread.is_alive() and not thread.daemon for thread in others):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)
    raise typer.Exit(status) from None


class _Terminated(BaseException):
    """SIGTERM came."""


def _terminate(_number: int, _frame: object) -> None:
    raise _Terminated


def run_scenario(file: Path, policy: PolicyOptions, seed: int | None, output: RunOutputOptions) -> None:
    """`chiron sim run`."""
    _check(output)
    scenario = read_scenario(file)
    _run(scenario, _chosen(scenario, policy), seed, output)


def run_replay(
    options: ReplayOptions, policy: PolicyOptions, seed: int | None, output: RunOutputOptions
) -> None:
    """`chiron sim replay`."""
    _check(output)
    engine = {} if options.max_context_tokens is None else {"max_context_tokens": options.max_context_tokens}
    source: dict[str, Any] = {
        "file": str(options.trace.absolute()),
        "format": options.trace_format,
        "scaling": options.scaling,
        "limit": options.limit,
        "strict": options.strict,
    }
    if options.rate_per_s is not None:
        source["rate_per_s"] = options.rate_per_s
    if options.deadline_in_s is not None:
        source |= {"request_class": "batch", "deadline_in_s": options.deadline_in_s}
    model = {
        "profile": options.profile,
        "engine": engine,
        "initial": {"mixed": options.instances},
        "ttft_slo_s": options.slo_ttft_ms / 1e3,
        "itl_slo_s": options.slo_itl_ms / 1e3,
    }
    gpus: dict[str, Any] = {"name": "gpu", "nodes": options.nodes, "gpus_per_node": options.gpus}
    if options.price is not None:
        gpus["price_per_gpu_hour"] = options.price
    document = {
        "name": f"replay of {options.trace.name}",
        "cluster": {"gpus": [gpus]},
        "models": {"model": model},
        "replay": [source],
    }
    with _naming_options():
        scenario = scenario_from(document, Path(_COMMAND_LINE))
        _run(scenario, _chosen(scenario, policy), seed, output)


@contextmanager
def _naming_options() -> Iterator[None]:
    """An error in a key of the scenario that the options make names the option instead."""
    try:
        yield
    except ConfigError as error:
        found = re.match(rf"{_COMMAND_LINE}[^:]*: '?(\w+)'?(?=\W)", str(error))
        option = None if found is None else _OPTION_OF_KEY.get(found[1])
        if found is None or option is None:
            raise
        raise ConfigError(f"--{option}{str(error)[found.end() :]}") from error


def run_compare(options: CompareOptions, parts: PartOptions, output: OutputOptions) -> None:
    """`chiron sim compare`."""
    _check(output)
    scenario = read_scenario(options.scenario)
    names = [name.strip() for name in options.policies]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--policies: {name!r} is there twice")
    choices = [PolicyChoice(name) for name in names]
    own = _choice(scenario.policy, parts)
    if own != PolicyChoice() and own not in choices:
        choices.append(own)
    first = scenario.settings.seed if options.first_seed is None else options.first_seed
    seeds = range(first, first + options.seeds)
    _report_reading(scenario.with_seed(first).reading(), scenario)
    with _progress(output, "runs") as told:
        entries = compare(
            scenario,
            choices,
            seeds,
            jobs=options.jobs,
            progress=lambda done, total: told(0.0, done, total),
        )
    ceilings = model_ceilings(scenario.with_seed(first)) if options.ceiling else {}
    _write(output, comparison_json(scenario, entries, ceilings))
    if not output.json_on_stdout:
        console = _wide_console()
        console.print(comparison_table(scenario, entries))
        if ceilings:
            console.print(ceiling_table(ceilings))
    if output.plots is not None:
        from chiron.sim.plots import plot_comparison

        _tell_files(plot_comparison(scenario.name, entries, output.plots))


def _chosen(scenario: Scenario, options: PolicyOptions) -> PolicyChoice:
    """The scenario's policy with what the command line says instead. Raises ConfigError."""
    return _choice(scenario.policy if options.policy is None else PolicyChoice(options.policy), options)


def _choice(choice: PolicyChoice, parts: PartOptions) -> PolicyChoice:
    """The policy with the parts that the command line says instead. Raises ConfigError."""
    chosen = replace(
        choice,
        autoscaler=_either(parts.autoscaler, choice.autoscaler),
        dispatcher=_either(parts.dispatcher, choice.dispatcher),
        local=_either(parts.local, choice.local),
        preemption=_either(parts.preemption, choice.preemption),
    )
    _find_modules_here(chosen.autoscaler, chosen.dispatcher, chosen.local)
    chosen.make()
    return chosen


def _either(given: T | None, otherwise: T | None) -> T | None:
    return otherwise if given is None else given


def _run(scenario: Scenario, policy: PolicyChoice, seed: int | None, output: RunOutputOptions) -> None:
    if seed is not None:
        scenario = scenario.with_seed(seed)
    reading = scenario.reading()
    _report_reading(reading, scenario)
    with _progress(output, "requests") as told, _decision_log(output) as log:
        done: Run = run(scenario, policy, reading=reading, progress=told, log=log)
    _write(output, done.to_json())
    if not output.json_on_stdout:
        _wide_console().print(run_table(done))
    if output.plots is not None:
        from chiron.sim.plots import plot_run

        _tell_files(plot_run(done, output.plots))


def _report_reading(reading: Reading, scenario: Scenario) -> None:
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
def _decision_log(output: RunOutputOptions) -> Iterator[DecisionLog | None]:
    """Raises CliError when the file cannot be written."""
    if output.decisions is None:
        yield None
        return
    try:
        with output.decisions.open("w", encoding="utf-8") as out:
            yield DecisionLog(out)
    except OSError as error:
        raise CliError(f"cannot write {output.decisions}: {error.strerror}") from error


@contextmanager
def _progress(output: OutputOptions, what: str) -> Iterator[Told]:
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


def _wide_console() -> Console:
    """stdout, wide enough for the tables when it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNCUT)


def _check(output: OutputOptions) -> None:
    """Raises CliError before a long run when its findings could not be written."""
    file = output.json_file
    if file is not None and not output.json_on_stdout:
        if file.is_dir():
            raise CliError(f"cannot write {file}: Is a directory")
        if not file.parent.is_dir():
            raise CliError(f"cannot write {file}: no such folder as {file.parent}")
    if output.plots is not None:
        try:
            output.plots.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CliError(f"cannot write plots to {output.plots}: {error.strerror}") from error


def _write(output: OutputOptions, figures: Mapping[str, Any]) -> None:
    if output.json_file is None:
        return
    text = json.dumps(figures, indent=2, allow_nan=False) + "\n"
    if output.json_on_stdout:
        sys.stdout.write(text)
    else:
        try:
            output.json_file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise CliError(f"cannot write {output.json_file}: {error.strerror}") from error


def _find_modules_here(*names: str | None) -> None:
    """Lets module:Class name a module in the working directory, as `python -m` does."""
    if any(name is not None and ":" in name for name in names) and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def _tell_files(files: list[Path]) -> None:
    for file in files:
        print(f"wrote {file}", file=sys.stderr)
