"""The whole evaluation: plan, run, tell, write."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.config import ConfigError
from chiron.sim.paper.cache import RunCache
from chiron.sim.paper.case import Figures
from chiron.sim.paper.commands import Commands
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.plan import Job, Plan, make_plan
from chiron.sim.paper.results import Told, results_json, tell_all, unfinished, write_results
from chiron.sim.paper.runner import Ended, Runner
from chiron.sim.trace_formats import TraceError


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    out: Path
    experiments: Sequence[Experiment]
    size: Size
    traces: Path | None
    """Folder of production traces."""
    jobs: int
    """Processes at most; 0: one per core."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a run of the evaluation found."""

    told: list[Told]
    """By each experiment."""
    file: Path
    """With all figures."""
    unfinished: str = ""
    """What is missing, by experiment."""
    ended_by: BaseException | None = None
    """What ended the program before everything was run."""


class Evaluation:
    """One run of the evaluation. Raises ConfigError for a folder that cannot be used, or a trace."""

    def __init__(self, request: Request) -> None:
        """Makes the folder and the plan, which may take a second, and runs nothing."""
        self._request = request
        if request.traces is not None and not request.traces.is_dir():
            raise ConfigError(f"--traces: {request.traces} is no folder")
        try:
            self._cache = RunCache(request.out / "cache")
        except OSError as error:
            raise ConfigError(f"--out: cannot write {request.out}: {error.strerror}") from error
        workers = request.jobs or len(os.sched_getaffinity(0))
        self._commands = Commands(request.out, request.size, request.traces)
        try:
            self.plan: Plan = make_plan(
                request.experiments, request.size, request.traces, self._cache, workers
            )
        except (OSError, TraceError) as error:
            raise ConfigError(f"--traces: {error}") from error

    def run(self, told: Callable[[Job, Ended], None]) -> Results:
        """Runs what is not finished, tells of everything, and writes results.json.

        Ctrl-C, or whatever else ends the program, ends the runs: the rest is told, and `ended_by` has it.

        Args:
            told: hears of every run that has ended, those of the cache included.

        Raises:
            OSError: a file cannot be written.
        """
        runner = Runner(self.plan, self._cache, self._commands, told)
        ended_by = None
        try:
            runner.run()
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            ended_by = error
        skipped = {share.experiment.name: share.skipped for share in self.plan.shares if share.skipped}
        found = tell_all(runner.tracks, skipped, self._commands)
        results = results_json(found, self._request.size, self._commands)
        file = write_results(self._request.out, results)
        return Results(found, file, unfinished(found), ended_by)

    def find(self, key: str, told: Callable[[Job, Ended], None]) -> Job:
        """The case of this key, of the only experiment; what it is made from runs first.

        Raises:
            ConfigError: there is no such case.
            OSError: a file cannot be written.
        """
        runner = Runner(self.plan, self._cache, self._commands, told)

        def found() -> Job | None:
            jobs = (job for track in runner.tracks for job in track.jobs)
            return next((job for job in jobs if job.case.key == key), None)

        runner.run(until=lambda: found() is not None)
        job = found()
        if job is None:
            (track,) = runner.tracks
            known = [each.case.key for each in track.jobs]
            raise ConfigError(
                f"--case: experiment {track.experiment.name} has no case {key!r}; it has "
                f"{', '.join(known) if known else 'none'}"
            )
        return job


def again(job: Job) -> Figures:
    """Runs a case in this process, whatever the cache has. Raises what its measure raises."""
    return job.case.measure(job.case)
