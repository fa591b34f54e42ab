"""Runs the cases of all experiments on all cores, keeps each as it finishes, and goes on after a failure."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import chiron.sim
from chiron.sim.paper.cache import Entry, RunCache
from chiron.sim.paper.case import NoFleetError, Outcome
from chiron.sim.paper.commands import Commands
from chiron.sim.paper.experiment import Experiment
from chiron.sim.paper.plan import Job, Plan, make_jobs
from chiron.sim.paper.speed import kind_of
from chiron.sim.processes import worker_pool

_SOURCES = f"{Path(chiron.sim.__file__).parents[2]}{os.sep}"
KILLED = "its process was killed; for lack of memory perhaps: try --jobs 1"


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a case."""

    entry: Entry | None
    """None: it failed."""
    failure: str = ""
    """Why."""
    cached: bool = False
    """It was finished before."""


@dataclass(slots=True)
class Track:
    """One experiment under way."""

    experiment: Experiment
    jobs: list[Job]
    """All that it has asked for, in order."""
    ended: dict[str, Ended] = field(default_factory=dict)
    """By fingerprint."""
    complete: bool = False
    """It asks for no more."""
    failure: str = ""
    """Why it could make no further cases."""

    def outcomes(self, commands: Commands) -> list[Outcome]:
        """Of the cases that ran, in the order in which they were asked for."""
        found = []
        for job in self.jobs:
            ended = self.ended.get(job.fingerprint)
            if ended is not None and ended.entry is not None and ended.entry.figures is not None:
                found.append(Outcome(job.case, ended.entry.figures, commands.command(job.case)))
        return found

    @property
    def waits(self) -> bool:
        """Cases of its present stage are still to end."""
        return any(job.fingerprint not in self.ended for job in self.jobs)


def never() -> bool:
    """No reason to stop."""
    return False


class Runner:
    """Runs a plan."""

    def __init__(
        self, plan: Plan, cache: RunCache, commands: Commands, told: Callable[[Job, Ended], None]
    ) -> None:
        """Runs nothing yet.

        Args:
            plan: what is run.
            cache: where finished runs are and come to.
            commands: for the outcomes that experiments see.
            told: hears of every run that has ended, once, those of the cache included.
        """
        self.tracks = [
            Track(each.experiment, list(each.jobs), complete=not each.jobs) for each in plan.shares
        ]
        self._plan, self._cache, self._commands, self._told = plan, cache, commands, told
        self._results: dict[str, Ended] = {}
        self._looked_up: set[str] = set()
        self._under_way: dict[Future[Entry | str], Job] = {}

    def run(self, until: Callable[[], bool] = never) -> None:
        """Runs everything that is not finished. What fails is kept with its cause, and the rest goes on.

        What ends the program (Ctrl-C, SystemExit) comes through; the tracks then hold what ended before.

        Args:
            until: nothing more is begun once it holds.

        Raises:
            OSError: a finished run or a scenario cannot be written.
        """
        self._settle()
        while not until() and self._next() is not None:
            try:
                with worker_pool(self._plan.workers) as pool:
                    self._feed(pool, self._plan.workers, until)
            except BrokenProcessPool:
                # Nobody tells whose process it was: each that was under way is tried again alone.
                for job in list(self._under_way.values()):
                    self._alone(job)

    def _feed(self, pool: ProcessPoolExecutor, workers: int, until: Callable[[], bool]) -> None:
        self._under_way = {}
        while True:
            while len(self._under_way) < workers and not until() and (job := self._next()) is not None:
                self._under_way[pool.submit(perform, job)] = job
            if not self._under_way:
                return
            done, _ = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                answer = future.result()
                self._end(self._under_way.pop(future), answer)

    def _alone(self, job: Job) -> None:
        try:
            with worker_pool(1) as pool:
                answer = pool.submit(perform, job).result()
        except BrokenProcessPool:
            answer = KILLED
        self._end(job, answer)

    def _next(self) -> Job | None:
        """The first case that is neither finished nor under way, by experiment; late ones last."""
        busy = {job.fingerprint for job in self._under_way.values()}
        late = None
        for track in self.tracks:
            for job in track.jobs:
                if job.fingerprint in track.ended or job.fingerprint in busy:
                    continue
                if not job.case.late:
                    return job
                late = late or job
        return late

    def _end(self, job: Job, answer: Entry | str) -> None:
        if isinstance(answer, Entry):
            self._cache.put(job.fingerprint, answer)
            ended = Ended(answer)
        else:
            ended = Ended(None, answer)
        self._results[job.fingerprint] = ended
        self._settle()
        self._told(job, ended)

    def _settle(self) -> None:
        """Gives every experiment the results that there are, and asks those without open cases for more."""
        for track in self.tracks:
            while True:
                for job in track.jobs:
                    ended = self._result(job) if job.fingerprint not in track.ended else None
                    if ended is not None:
                        track.ended[job.fingerprint] = ended
                if track.complete or track.waits:
                    break
                self._ask(track)

    def _result(self, job: Job) -> Ended | None:
        if job.fingerprint not in self._looked_up:
            self._looked_up.add(job.fingerprint)
            entry = self._cache.get(job.fingerprint)
            if entry is not None:
                self._results[job.fingerprint] = ended = Ended(entry, cached=True)
                self._told(job, ended)
        return self._results.get(job.fingerprint)

    def _ask(self, track: Track) -> None:
        known = {job.case.key for job in track.jobs}
        try:
            cases = track.experiment.next_cases(self._plan.size, track.outcomes(self._commands))
            new = make_jobs([case for case in cases if case.key not in known], self._plan.speed)
        except Exception as error:
            track.failure = cause(error)
            new = []
        track.jobs += new
        track.complete = not new


def perform(job: Job) -> Entry | str:
    """Runs a case in a process of the pool; of a failure, the cause in one line."""
    began = time.process_time()
    figures, missing = None, ""
    try:
        # As the cache would give it back, so that nobody can tell the difference.
        figures = json.loads(json.dumps(job.case.measure(job.case), allow_nan=False))
    except NoFleetError as error:
        missing = str(error)
    except BaseException as error:
        # A policy may raise anything, which would come out of the pool and end the others' runs.
        return cause(error)
    cpu_s = time.process_time() - began
    return Entry(figures, missing, job.case.experiment, kind_of(job.case), job.requests, cpu_s)


def cause(error: BaseException) -> str:
    """An error in one line. Chiron's own files are named from its package on: reports have other readers."""
    told = " ".join(str(error).split()).replace(_SOURCES, "")
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
