"""Searches for the parameters with which a policy serves a scenario best, on seeds that no report uses.

A search is pure: it says which runs it wants next, given those that are done, and in the end which candidate
is best. So whoever runs simulations side by side, and keeps finished ones, can run a search too; `tune` does
so by itself. Candidates race: all of them run on one seed, and the better part on the others as well
(successive halving, Jamieson and Talwalkar, AISTATS 2016, with seeds for the budget). Before that the search
may climb: the neighbours of the best one on the first seed run too, and those of the best one then.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Any

from chiron.sim.policies import PolicyChoice
from chiron.sim.processes import worker_pool
from chiron.sim.runs import INTERACTIVE_GOAL, run
from chiron.sim.scenario import Scenario

TUNING_SEEDS = range(1, 61)
"""Seeds that may be tuned on; reports use others."""
_SAME_RATE = 0.99
"""Rates above this share of the highest count as equal: what arrives is the same for all candidates."""

Parameters = Mapping[str, float]
"""Numbers by the names that a policy knows them by."""
Named = tuple[tuple[str, float], ...]
"""The same, sorted by name: one candidate."""
Figures = Mapping[str, Any]
"""What `Run.to_json` tells of a run."""


class Aim(StrEnum):
    """What the best candidate is best at."""

    ATTAINMENT = "attainment"
    """It attains on every seed with the fewest GPU-hours; if none does, it comes nearest to that."""
    THROUGHPUT = "throughput"
    """Most requests per second; of those that serve about as many, most per GPU-hour. SLOs do not count."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run that a search wants."""

    parameters: Named
    """Of its candidate."""
    seed: int

    def __str__(self) -> str:
        """One text for one trial, such as `batch_size=256 out_below=10 seed=1`."""
        return " ".join(f"{name}={value:g}" for name, value in (*self.parameters, ("seed", self.seed)))


@dataclass(frozen=True, slots=True)
class Best:
    """What a search has found."""

    choice: PolicyChoice
    parameters: Parameters
    attains: bool
    """On every seed of the search."""
    attained: float
    """See `attained`: the worst over the seeds."""
    gpu_hours: float
    """Mean over the seeds."""
    requests_per_s: float
    """Mean over the seeds."""
    runs: int
    """Of the whole search."""


@dataclass(frozen=True, slots=True)
class Search:
    """Which candidates race on which seeds, for what. Raises ValueError naming the field."""

    choose: Callable[[Parameters], PolicyChoice]
    """Makes the policy of a candidate."""
    candidates: Sequence[Parameters]
    seeds: Sequence[int] = (1, 2, 3)
    """All run on the first, the better part on the others too."""
    aim: Aim = Aim.ATTAINMENT
    keep: float = 0.2
    """The share that goes on to the other seeds, one at least."""
    neighbours: Callable[[Parameters], Sequence[Parameters]] | None = None
    """What to try beside the best so far; None: the candidates alone."""
    rounds: int = 0
    """How often at most; it ends when all neighbours of the best have run."""

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("candidates: a search needs at least one")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: must be one or more, none twice, not {list(self.seeds)}")
        for seed in self.seeds:
            if seed not in TUNING_SEEDS:
                limits = f"from {TUNING_SEEDS[0]} to {TUNING_SEEDS[-1]}"
                raise ValueError(f"seeds: must be {limits}, which no report uses, not {seed}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep: must be above 0 and at most 1, not {self.keep:g}")
        if self.rounds < 0 or (self.rounds > 0) != (self.neighbours is not None):
            raise ValueError("rounds: must be above 0 with neighbours, and 0 without")

    def next_trials(self, done: Mapping[Trial, Figures]) -> list[Trial]:
        """The runs wanted next; none: the search has ended. Runs of others in `done` do not matter."""
        named, ended = self._climbed(done)
        if not ended:
            return [trial for trial in self._of(named, self.seeds[:1]) if trial not in done]
        return [trial for trial in self._of(self._kept(named, done), self.seeds[1:]) if trial not in done]

    def best(self, done: Mapping[Trial, Figures]) -> Best:
        """The best candidate, once `next_trials` wants no more. Raises ValueError before."""
        if self.next_trials(done):
            raise ValueError("the search has not ended: it wants further runs")
        named, _ = self._climbed(done)
        kept = self._kept(named, done)
        first, *_ = self._ranked(kept, self.seeds, done)
        mine = [done[trial] for trial in self._of([first], self.seeds)]
        least = min(attained(figures) for figures in mine)
        return Best(
            choice=self.choose(dict(first)),
            parameters=dict(first),
            attains=least >= 1,
            attained=least,
            gpu_hours=_mean(mine, _gpu_hours),
            requests_per_s=_mean(mine, _requests_per_s),
            runs=len(named) + len(kept) * (len(self.seeds) - 1),
        )

    @property
    def most_runs(self) -> int:
        """Runs of the whole search at most, as far as the first candidate's neighbours tell."""
        near = 0 if self.neighbours is None else len(self.neighbours(self.candidates[0]))
        first = len(_named(self.candidates)) + self.rounds * near
        return first + ceil(self.keep * first) * (len(self.seeds) - 1)

    def choice(self, trial: Trial) -> PolicyChoice:
        """The policy that a trial runs under."""
        return self.choose(dict(trial.parameters))

    def _climbed(self, done: Mapping[Trial, Figures]) -> tuple[list[Named], bool]:
        """All that are to run on the first seed, as far as is known, and whether all of them have."""
        named = _named(self.candidates)
        for climb in range(self.rounds + 1):
            if any(trial not in done for trial in self._of(named, self.seeds[:1])):
                return named, False
            if self.neighbours is None or climb == self.rounds:
                break
            best, *_ = self._ranked(named, self.seeds[:1], done)
            further = [each for each in _named(self.neighbours(dict(best))) if each not in named]
            if not further:
                break
            named += further
        return named, True

    def _kept(self, named: Sequence[Named], done: Mapping[Trial, Figures]) -> list[Named]:
        ranked = self._ranked(named, self.seeds[:1], done)
        return ranked[: ceil(self.keep * len(ranked))]

    def _of(self, named: Sequence[Named], seeds: Sequence[int]) -> list[Trial]:
        return [Trial(parameters, seed) for parameters in named for seed in seeds]

    def _ranked(
        self, named: Sequence[Named], seeds: Sequence[int], done: Mapping[Trial, Figures]
    ) -> list[Named]:
        """Best first; equal ones in the order in which they were given."""
        figures = {each: [done[trial] for trial in self._of([each], seeds)] for each in named}
        if self.aim is Aim.ATTAINMENT:
            return sorted(named, key=lambda each: _by_attainment(figures[each]))
        highest = max(_mean(each, _requests_per_s) for each in figures.values())
        return sorted(named, key=lambda each: _by_throughput(figures[each], highest))


def _named(candidates: Iterable[Parameters]) -> list[Named]:
    """Each once, in their order."""
    return list(dict.fromkeys(tuple(sorted(each.items())) for each in candidates))


def attained(figures: Figures) -> float:
    """How much of what attaining asks for a run has: 1 when it attains, else the worse share of the two.

    Asked for are 99 % of the interactive requests and every batch deadline.
    """
    shares = figures["slo_attainment"]
    interactive, batch = shares["interactive"], shares["batch"]
    asked = ((interactive, INTERACTIVE_GOAL), (batch, 1.0))
    return float(min([1.0, *(share / goal for share, goal in asked if share is not None)]))


def _by_attainment(runs: Sequence[Figures]) -> tuple[float, float]:
    return -min(attained(figures) for figures in runs), _mean(runs, _gpu_hours)


def _by_throughput(runs: Sequence[Figures], highest: float) -> tuple[float, float]:
    rate = _mean(runs, _requests_per_s)
    return (0.0 if rate >= _SAME_RATE * highest else highest - rate), _mean(runs, _gpu_hours)


def _mean(runs: Sequence[Figures], figure: Callable[[Figures], float]) -> float:
    return sum(figure(figures) for figures in runs) / len(runs)


def _gpu_hours(figures: Figures) -> float:
    return float(figures["gpu_hours"])


def _requests_per_s(figures: Figures) -> float:
    return float(figures["throughput"]["requests_per_s"])


def grid(**values: Sequence[float]) -> list[dict[str, float]]:
    """Every combination of these values, by name."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


@dataclass(frozen=True, slots=True)
class Ladders:
    """The neighbours of a candidate: each of its parameters one value up or down."""

    values: Mapping[str, Sequence[float]]
    """By name, ascending."""
    together: Sequence[tuple[str, ...]] = ()
    """Parameters that also go up, or down, at the same time."""
    allowed: Callable[[Parameters], bool] = lambda parameters: True

    def __call__(self, candidate: Parameters) -> list[Parameters]:
        """Those that are allowed. A value between two of the ladder's goes to them."""
        moves = [*((name,) for name in self.values), *self.together]
        found = [self._moved(candidate, names, up) for names in moves for up in (False, True)]
        return [each for each in found if each is not None and self.allowed(each)]

    def _moved(self, candidate: Parameters, names: Sequence[str], up: bool) -> Parameters | None:
        moved = dict(candidate)
        for name in names:
            here = candidate[name]
            beyond = [each for each in self.values[name] if (each > here if up else each < here)]
            if not beyond:
                return None
            moved[name] = min(beyond) if up else max(beyond)
        return moved


@dataclass(frozen=True, slots=True)
class TrialRun:
    """What one process does."""

    scenario: Scenario
    """With the trial's seed."""
    choice: PolicyChoice

    def __call__(self) -> Figures:
        """Runs it."""
        return run(self.scenario, self.choice).to_json()


def tune(
    search: Search,
    scenario: Scenario,
    *,
    jobs: int = 0,
    progress: Callable[[Trial, Figures], None] | None = None,
) -> tuple[Best, dict[Trial, Figures]]:
    """Runs a search on a scenario; returns the best candidate and the figures of all runs.

    Args:
        search: what is tried.
        scenario: its own seed does not matter.
        jobs: processes side by side; 0: one for each core, 1: none but this one.
        progress: told of each run when it has ended.

    Raises:
        ConfigError: a policy or a trace that cannot be used.
    """
    done: dict[Trial, Figures] = {}
    workers = jobs or len(os.sched_getaffinity(0))
    with nullcontext() if workers == 1 else worker_pool(workers) as pool:
        while wanted := search.next_trials(done):
            tasks = {
                trial: TrialRun(scenario.with_seed(trial.seed), search.choice(trial)) for trial in wanted
            }
            for trial, figures in _run_all(tasks, pool):
                done[trial] = figures
                if progress is not None:
                    progress(trial, figures)
    return search.best(done), done


def _run_all(
    tasks: Mapping[Trial, TrialRun], pool: ProcessPoolExecutor | None
) -> Iterator[tuple[Trial, Figures]]:
    """Each trial with its figures, as they come."""
    if pool is None:
        yield from ((trial, task()) for trial, task in tasks.items())
        return
    futures = {pool.submit(task): trial for trial, task in tasks.items()}
    for future in as_completed(futures):
        yield futures[future], future.result()
