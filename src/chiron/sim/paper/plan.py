"""What a run of the evaluation is going to do, before it does anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.cache import RunCache
from chiron.sim.paper.case import Case
from chiron.sim.paper.experiment import Experiment, Size, SkippedError
from chiron.sim.paper.fingerprint import fingerprint
from chiron.sim.paper.speed import Speed, expected_requests


class DoubledKeyError(ValueError):
    """Two cases of one experiment that labels, policy and seed do not tell apart."""


@dataclass(frozen=True, slots=True)
class Job:
    """A case with what the plan knows of it."""

    case: Case
    fingerprint: str
    requests: float
    """Simulated, about."""
    cpu_s: float
    """Expected."""


@dataclass(frozen=True, slots=True)
class Share:
    """One experiment's part of the plan."""

    experiment: Experiment
    jobs: tuple[Job, ...] = ()
    """The first ones."""
    cached: int = 0
    """Of those, finished before."""
    later: int = 0
    """Runs that will be made from what the first ones show, about."""
    requests: float = 0.0
    """Simulated in all, about; those of finished runs and of later ones included."""
    skipped: str = ""
    """Why nothing is run."""
    left_out: str = ""
    """What of it is not run, and what would run it."""

    @property
    def runs(self) -> int:
        """In all, those of later stages included."""
        return len(self.jobs) + self.later


@dataclass(frozen=True, slots=True)
class Plan:
    """All experiments' parts."""

    size: Size
    shares: tuple[Share, ...]
    speed: Speed
    workers: int
    runs: int
    """In all, about; those that several experiments ask for count once."""
    to_do_cpu_s: float
    """Of runs that are neither finished nor the same as another experiment's."""

    @property
    def expected_s(self) -> float:
        """On this machine, when nothing else runs on it."""
        return self.to_do_cpu_s / self.workers


def make_plan(
    experiments: Sequence[Experiment],
    size: Size,
    traces: Path | None,
    cache: RunCache,
    workers: int,
) -> Plan:
    """Asks every experiment for its first cases and looks up which of them are finished.

    Raises:
        ConfigError, OSError: a trace that cannot be used.
        DoubledKeyError: a defect of an experiment.
    """
    speed = Speed(cache.entries())
    shares = []
    seen: dict[str, bool] = {}
    to_do_s, later_runs = 0.0, 0
    for experiment in experiments:
        try:
            cases = experiment.cases(size, traces)
        except SkippedError as error:
            shares.append(Share(experiment, skipped=str(error)))
            continue
        jobs = make_jobs(cases, speed)
        done = 0
        missing_s = 0.0
        for job in jobs:
            if job.fingerprint not in seen:
                seen[job.fingerprint] = cache.get(job.fingerprint) is not None
                missing_s += 0.0 if seen[job.fingerprint] else job.cpu_s
            done += seen[job.fingerprint]
        first = sum(job.requests for job in jobs)
        later = experiment.later(size)
        further = later.requests
        if further is None:
            further = later.runs * first / len(jobs) if jobs else 0.0
        # As long as any of it is to be done, the later runs are too.
        if missing_s:
            missing_s += further / speed.requests_per_s
        to_do_s += missing_s
        later_runs += later.runs
        left_out = experiment.left_out(size, traces)
        shares.append(Share(experiment, tuple(jobs), done, later.runs, first + further, left_out=left_out))
    return Plan(size, tuple(shares), speed, workers, len(seen) + later_runs, to_do_s)


def make_jobs(cases: Sequence[Case], speed: Speed) -> list[Job]:
    """The cases of one experiment, with what is known of them. Raises DoubledKeyError."""
    found: dict[str, Job] = {}
    for case in cases:
        requests = expected_requests(case.scenario)
        job = Job(case, fingerprint(case), requests, speed.cpu_s(case, requests))
        if case.key in found:
            raise DoubledKeyError(f"experiment {case.experiment}: two cases are called {case.key}")
        found[case.key] = job
    return list(found.values())
