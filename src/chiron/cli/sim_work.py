"""What the `chiron sim` commands do: read, simulate, and show."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

import typer

from chiron.cli.runner import EXIT_BAD_START, EXIT_FAILED, EXIT_INTERRUPTED, CliError
from chiron.cli.sim_options import OutputOptions, PartOptions, PolicyOptions, RunOutputOptions
from chiron.cli.sim_output import check_output, stdout_for_figures, write_findings
from chiron.cli.sim_telling import progress_bar, report_reading, wide_console
from chiron.cli.sim_traces import ReplayOptions, naming_options, replayed_scenario
from chiron.config import ConfigError
from chiron.policy.custom import PolicyError, failure
from chiron.sim.compare import compare, model_ceilings
from chiron.sim.decision_log import DecisionLog
from chiron.sim.parameters import ParameterError, parsed
from chiron.sim.policies import PartError, PolicyChoice
from chiron.sim.report import ceiling_table, comparison_json, comparison_table, run_table
from chiron.sim.runs import OracleViolatedError, Run, run
from chiron.sim.scenario import Scenario, read_scenario
from chiron.sim.searched import none_attains
from chiron.sim.settings import InvalidSettingError
from chiron.sim.variations import vary

_PATIENCE_S = 5.0
"""Longest wait for each process and thread that ends with an interrupted command."""
_EXIT_TERMINATED = 128 + signal.SIGTERM
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Which policies serve which workloads."""

    scenario: Path
    policies: tuple[str, ...]
    seeds: int
    first_seed: int | None
    jobs: int
    ceiling: bool
    vary: str | None = None


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
    except BaseException as error:
        if isinstance(error, Exception | SystemExit | GeneratorExit):
            raise
        # Nothing else here raises one that is no Exception.
        print(f"error: {failure('a policy failed', '', error)}", file=sys.stderr)
        _leave(EXIT_BAD_START)


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


def run_scenario(
    file: Path, policy: PolicyOptions, seed: int | None, output: RunOutputOptions, varied: str | None = None
) -> None:
    """`chiron sim run`."""
    check_output(output)
    with stdout_for_figures(output):
        scenario = _read(file, varied)
        done, figures = _run(scenario, choice_of(scenario, scenario.policy, policy), seed, output)
    _tell(done, figures, output)


def _read(file: Path, varied: str | None) -> Scenario:
    scenario = read_scenario(file)
    return scenario if varied is None else vary(scenario, varied)


def run_replay(
    options: ReplayOptions, policy: PolicyOptions, seed: int | None, output: RunOutputOptions
) -> None:
    """`chiron sim replay`."""
    check_output(output)
    with naming_options(), stdout_for_figures(output):
        scenario = replayed_scenario(options)
        done, figures = _run(scenario, choice_of(scenario, scenario.policy, policy), seed, output)
    _tell(done, figures, output)


def run_compare(options: CompareOptions, parts: PartOptions, output: OutputOptions) -> None:
    """`chiron sim compare`."""
    check_output(output)
    with stdout_for_figures(output):
        scenario = _read(options.scenario, options.vary)
        choices = _compared(options.policies, choice_of(scenario, scenario.policy, parts))
        first = scenario.settings.seed if options.first_seed is None else options.first_seed
        seeds = range(first, first + options.seeds)
        report_reading(scenario.with_seed(first).reading(), scenario)
        with progress_bar(output, "runs") as told:
            entries = compare(
                scenario,
                choices,
                seeds,
                jobs=options.jobs,
                progress=lambda done, total: told(0.0, done, total),
            )
        for entry in entries:
            if entry.figures is None:
                none = none_attains(PolicyChoice(entry.policy))
                print(f"warning: {entry.policy}, seed {entry.seed}: {none}", file=sys.stderr)
        ceilings = model_ceilings(scenario.with_seed(first)) if options.ceiling else {}
        figures = comparison_json(scenario, entries, ceilings)

    def show() -> None:
        console = wide_console()
        console.print(comparison_table(scenario, entries))
        if ceilings:
            console.print(ceiling_table(ceilings))

    from chiron.sim.plots import plot_comparison

    write_findings(output, figures, show, lambda folder: plot_comparison(scenario.name, entries, folder))


def _compared(names: Sequence[str], own: PolicyChoice) -> list[PolicyChoice]:
    """The policies of these names, and the one of the options or the scenario. Raises ConfigError."""
    wanted = [name.strip() for name in names]
    for name in wanted:
        if wanted.count(name) > 1:
            raise ConfigError(f"--policies: {name!r} is there twice")
    choices = [PolicyChoice(name) for name in wanted]
    return choices if own == PolicyChoice() or own in choices else [*choices, own]


def choice_of(scenario: Scenario, choice: PolicyChoice, parts: PartOptions) -> PolicyChoice:
    """The policy with what the command line says instead. Raises ConfigError."""
    if isinstance(parts, PolicyOptions) and parts.policy is not None:
        choice = PolicyChoice(parts.policy)
    own = choice.parameters
    try:
        given = parsed(parts.assignments or ())
    except ParameterError as error:
        raise ConfigError(f"--set: {error}") from error
    chosen = replace(
        choice,
        autoscaler=_either(parts.autoscaler, choice.autoscaler),
        dispatcher=_either(parts.dispatcher, choice.dispatcher),
        local=_either(parts.local, choice.local),
        preemption=_either(parts.preemption, choice.preemption),
        parameters=given.over(own),
    )
    _find_modules_here(chosen.autoscaler, chosen.dispatcher, chosen.local)
    try:
        # Limits are within the models' only once they meet.
        chosen.make().settings(scenario.settings)
    except ParameterError as error:
        from_file = error.name in own and error.name not in given
        where = f"{scenario.file} [policy.parameters]" if from_file else "--set"
        raise ConfigError(f"{where}: {error}") from error
    except PartError as error:
        if getattr(parts, error.part) is None and getattr(choice, error.part) is not None:
            raise ConfigError(f"{scenario.file} [policy]: {error.part!r}: {error}") from error
        raise
    return chosen


def _either(given: T | None, otherwise: T | None) -> T | None:
    return otherwise if given is None else given


def _run(
    scenario: Scenario, policy: PolicyChoice, seed: int | None, output: RunOutputOptions
) -> tuple[Run, Mapping[str, Any]]:
    if seed is not None:
        scenario = scenario.with_seed(seed)
    reading = scenario.reading()
    report_reading(reading, scenario)
    with progress_bar(output, "requests") as told, decision_log(output) as log:
        done = run(scenario, policy, reading=reading, progress=told, log=log)
    return done, done.to_json()


def _tell(done: Run, figures: Mapping[str, Any], output: OutputOptions) -> None:
    from chiron.sim.plots import plot_run

    write_findings(
        output,
        figures,
        lambda: wide_console().print(run_table(done)),
        lambda folder: plot_run(done, folder),
    )


@contextmanager
def decision_log(output: RunOutputOptions) -> Iterator[DecisionLog | None]:
    """Where decisions are written, if anywhere. Raises CliError when the file cannot be written."""
    if output.decisions is None:
        yield None
        return
    with _writing(output.decisions):
        out = output.decisions.open("w", encoding="utf-8")
    try:
        yield DecisionLog(_BlamedFile(out, output.decisions))
    finally:
        with _writing(output.decisions):
            out.close()


class _BlamedFile:
    """A file whose failures to take a line name it: what else fails meanwhile is not its fault."""

    def __init__(self, out: TextIO, path: Path) -> None:
        self._out, self._path = out, path

    def write(self, text: str) -> None:
        with _writing(self._path):
            self._out.write(text)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}") from error


def _find_modules_here(*names: str | None) -> None:
    """Lets module:Class name a module in the working directory, as `python -m` does."""
    if any(name is not None and ":" in name for name in names) and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
