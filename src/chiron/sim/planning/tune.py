"""Which knobs would have served a workload best: searched on some seeds, reported on others.

First each knob is moved by itself, up and down; with those that did better on the first seed the search
climbs, and the best of what it found race on further seeds. Whether the winner is better is then asked on
seeds that the search has not seen, on each of which the policy as it was runs too. Requests that were
recorded are the same on every seed: their first half is searched on, and their second half reported.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chiron.config import ConfigError
from chiron.sim import tuning
from chiron.sim.parameters import Parameters
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.knobs import Knobs, now_at
from chiron.sim.planning.need import Terms
from chiron.sim.planning.points import Point
from chiron.sim.planning.sized import Budget, most_in_use, with_room_for
from chiron.sim.planning.source import Source
from chiron.sim.planning.trial import Attempt, Trial
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import INTERACTIVE_GOAL

SEARCH_SEEDS = (1, 2, 3)
FIRST_FRESH = 101
"""Reports begin with this seed; it and all after it are searched on by nobody."""
_CLIMBS = 3
_PROMISING = 4
"""Knobs that are moved together at most: the ones whose moves did most by themselves."""
_KEEP = 0.25
_MARGIN = 0.25
"""Of the misses that the goal allows: a search asks for so many fewer, for what just attains on its seeds
does not on others."""
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t for 1, 2, … degrees of freedom; beyond them the last, which is on the safe
side."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of the tuned policy less that of the policy as it was, on the same seeds."""

    mean: float
    spread: float
    """Half the width of the 95 % interval of the mean over the seeds (Student's t)."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Difference:
        """Of two values or more."""
        mean, freedom = statistics.fmean(values), len(values) - 1
        t = _T[min(freedom, len(_T)) - 1]
        return cls(mean, t * statistics.stdev(values) / math.sqrt(len(values)))

    @property
    def is_real(self) -> bool:
        """Beyond the spread."""
        return abs(self.mean) > self.spread


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning found."""

    source: Source
    policy: PolicyChoice
    """As it was."""
    terms: Terms
    searched: tuple[int, ...]
    """Seeds of the search."""
    knobs: Knobs
    had: Mapping[str, float]
    """What each knob was set to."""
    changes: Mapping[str, float]
    """Knobs of the winner that differ from what they were; empty: nothing did better in the search."""
    before: Point
    """The policy as it was, on the fresh seeds."""
    after: Point
    """The winner on the same."""
    gpu_hours: Difference
    """Relative to the policy as it was."""
    attained: Difference
    """Of `tuning.attained`: 1 is all that was asked."""
    runs: int
    """Simulations that it took."""

    @property
    def better(self) -> bool:
        """Whether it attains on no fewer seeds, and beyond the spread attains more or holds fewer GPUs."""
        if self.after.attaining < self.before.attaining or not self.changes:
            return False
        if self.attained.is_real:
            return self.attained.mean > 0
        return self.gpu_hours.is_real and self.gpu_hours.mean < 0

    @property
    def winner(self) -> PolicyChoice:
        """The policy with the changes."""
        return changed(self.policy, self.changes)


def tune(source: Source, policy: PolicyChoice, terms: Terms, knobs: Knobs, crew: Crew) -> Tuned:
    """Finds the values of some knobs that serve a workload best: attain, with the fewest GPU-hours.

    Args:
        source: the workload and its GPUs.
        policy: who decides, as it is now.
        terms: the seeds of the report, none of which anybody searches on, and what is enough.
        knobs: what may change.
        crew: does the work.

    Raises:
        ConfigError: nothing to tune, seeds that are searched on or fewer than two, or a policy or a trace
            that cannot be used.
    """
    if not knobs:
        raise ConfigError(f"--tune: policy {policy.label!r} has no knobs")
    if len(terms.seeds) < 2:
        raise ConfigError("--seeds: tuning reports a spread, for which it needs 2 or more")
    for seed in terms.seeds:
        if seed in tuning.TUNING_SEEDS:
            raise ConfigError(
                f"--first-seed: seeds up to {tuning.TUNING_SEEDS[-1]} are searched on, such as {seed}"
            )
    most = terms.most_gpus or most_in_use(source.scenario.settings)
    source = dataclasses.replace(source, scenario=with_room_for(source.scenario, most))
    terms = dataclasses.replace(terms, most_gpus=most)
    has = {name: value for name, value in now_at(policy, source.scenario.settings).items() if name in knobs}
    halves = (source.between(0.0, 0.5), source.between(0.5, 1.0)) if source.is_recorded else (source, source)
    race = _Race(halves[0], policy, terms, has, crew)
    promising = race.promising(knobs)
    best = race.climbed(promising) if promising else has
    changes = {name: value for name, value in best.items() if value != has[name]}
    before = _report(halves[1], policy, terms, crew)
    after = _report(halves[1], changed(policy, changes), terms, crew) if changes else before
    return Tuned(
        source=halves[1],
        policy=policy,
        terms=terms,
        searched=SEARCH_SEEDS,
        knobs=knobs,
        had=has,
        changes=changes,
        before=before,
        after=after,
        gpu_hours=Difference.of(
            [b.gpu_hours / a.gpu_hours - 1 for a, b in zip(before.attempts, after.attempts, strict=True)]
        ),
        attained=Difference.of(
            [
                tuning.attained(_figures(b, terms.goal)) - tuning.attained(_figures(a, terms.goal))
                for a, b in zip(before.attempts, after.attempts, strict=True)
            ]
        ),
        runs=crew.done,
    )


def changed(policy: PolicyChoice, changes: Mapping[str, float]) -> PolicyChoice:
    """The policy with other values of these knobs."""
    return dataclasses.replace(policy, parameters=Parameters(changes).over(policy.parameters))


class _Race:
    """Runs searches, and keeps what was run."""

    def __init__(
        self, source: Source, policy: PolicyChoice, terms: Terms, has: Mapping[str, float], crew: Crew
    ) -> None:
        self._source, self._policy, self._terms, self._crew = source, policy, terms, crew
        self._has = dict(has)
        self._done: dict[tuple[Parameters, int], tuning.Figures] = {}

    def promising(self, knobs: Knobs) -> Knobs:
        """The knobs that did better when they alone were moved by one value, on the first seed."""
        search = self._search(self._has, SEARCH_SEEDS[:1], tuning.Ladders(knobs), rounds=1)
        scores = {trial: _score(figures) for trial, figures in self._run(search).items()}
        (mine,) = (score for trial, score in scores.items() if dict(trial.parameters) == self._has)
        gains: dict[str, tuple[float, float]] = {}
        for trial, score in scores.items():
            for name, value in trial.parameters:
                if value != self._has[name] and score < mine:
                    gains[name] = min(gains.get(name, score), score)
        best = sorted(gains, key=lambda name: gains[name])[:_PROMISING]
        return {name: knobs[name] for name in best}

    def climbed(self, knobs: Knobs) -> Mapping[str, float]:
        """The best that a climb from here over these knobs finds, and a race of the best on all seeds."""
        start = {name: self._has[name] for name in knobs}
        search = self._search(start, SEARCH_SEEDS, tuning.Ladders(knobs), rounds=_CLIMBS)
        return {**self._has, **search.best(self._run(search)).parameters}

    def _search(
        self, start: Mapping[str, float], seeds: Sequence[int], ladders: tuning.Ladders, rounds: int
    ) -> tuning.Search:
        return tuning.Search(
            self._choose, [start], seeds=seeds, keep=_KEEP, neighbours=ladders, rounds=rounds
        )

    def _choose(self, parameters: tuning.Parameters) -> PolicyChoice:
        return changed(self._policy, self._changes(parameters))

    def _changes(self, parameters: tuning.Parameters) -> Parameters:
        return Parameters({name: value for name, value in parameters.items() if value != self._has[name]})

    def _run(self, search: tuning.Search) -> dict[tuning.Trial, tuning.Figures]:
        """Runs a search to its end; what an earlier one has run counts."""
        done: dict[tuning.Trial, tuning.Figures] = {}
        goal = self._terms.goal
        asked = goal + _MARGIN * (1 - goal)
        while wanted := search.next_trials(done):
            keys = {trial: (self._changes(dict(trial.parameters)), trial.seed) for trial in wanted}
            new = {key: search.choice(trial) for trial, key in keys.items() if key not in self._done}
            budget = Budget(self._terms.most_gpus)
            trials = [Trial(self._source, budget, choice, seed, goal) for (_, seed), choice in new.items()]
            for key, attempt in zip(new, self._crew.all_of(trials), strict=True):
                self._done[key] = _figures(attempt, asked)
            done |= {trial: self._done[key] for trial, key in keys.items()}
        return done


def _report(source: Source, policy: PolicyChoice, terms: Terms, crew: Crew) -> Point:
    """A policy on the fresh seeds."""
    budget = Budget(terms.most_gpus)
    trials = [Trial(source, budget, policy, seed, terms.goal) for seed in terms.seeds]
    return Point(budget.gpus, tuple(crew.all_of(trials)))


def _figures(attempt: Attempt, goal: float) -> tuning.Figures:
    """As a search reads them, with the goal in the place of the one that it knows."""
    interactive = attempt.interactive
    return {
        "slo_attainment": {
            "interactive": None if interactive is None else interactive * INTERACTIVE_GOAL / goal,
            "batch": attempt.batch,
        },
        "gpu_hours": attempt.gpu_hours,
        "throughput": {"requests_per_s": 0.0},
    }


def _score(figures: tuning.Figures) -> tuple[float, float]:
    """Less is better: first what it lacks, then what it costs."""
    return -tuning.attained(figures), float(figures["gpu_hours"])
