"""Several policies on the same workloads: one process per core, the same figures whatever their number."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from chiron.sim.ceiling import Ceiling, ceilings
from chiron.sim.demand import fit_to_context
from chiron.sim.policies import PolicyChoice
from chiron.sim.processes import worker_pool
from chiron.sim.results import SimResult, TimelinePoint
from chiron.sim.runs import Run, attains
from chiron.sim.scenario import Scenario, longest
from chiron.sim.searched import SEARCHED as SEARCHED
from chiron.sim.searched import check_policy, run_searched

CEILING_REQUESTS = 6000
_CEILING_BATCH_SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024)
_CEILING_BUDGETS = (256, 512, 1024, 2048, 8192)


@dataclass(frozen=True, slots=True)
class Entry:
    """One policy on one seed."""

    policy: str
    seed: int
    figures: dict[str, Any] | None
    """As `chiron sim run --json` gives them; None: no fixed fleet or schedule attains."""
    timeline: tuple[TimelinePoint, ...] = ()
    fleet: int | None = None
    """Instances of a fixed fleet."""
    attains: bool = False
    oracle_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does."""

    scenario: Scenario
    policy: PolicyChoice

    def __call__(self) -> Entry:
        """Runs it; fixed fleets and schedules are searched first."""
        found = run_searched(self.scenario, self.policy)
        if found is None:
            return Entry(self.policy.label, self.scenario.settings.seed, None)
        return _entry(*found)


def _entry(done: Run, fleet: int | None) -> Entry:
    result: SimResult = done.result
    return Entry(
        done.policy.label,
        result.seed,
        done.to_json(),
        result.timeline,
        fleet,
        attains(result),
        done.oracle_ratio,
    )


def compare(
    scenario: Scenario,
    policies: Sequence[PolicyChoice],
    seeds: Sequence[int],
    *,
    jobs: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Entry]:
    """Runs every policy on the workload of every seed.

    Args:
        scenario: what is served on what.
        policies: who decides.
        seeds: of workload and simulation.
        jobs: processes at most; 0: one per core.
        progress: told (runs done, runs in all).

    Returns:
        By policy, then by seed, in the order given.

    Raises:
        ConfigError: a policy or a trace that cannot be used.
    """
    for policy in policies:
        check_policy(policy)
    tasks = [Task(scenario.with_seed(seed), policy) for policy in policies for seed in seeds]
    workers = min(jobs or len(os.sched_getaffinity(0)), len(tasks))
    if workers <= 1:
        return list(_in_turn(tasks, progress))
    done: dict[int, Entry] = {}
    with worker_pool(workers) as pool:
        futures = {pool.submit(task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            if progress is not None:
                progress(len(done), len(tasks))
    return [done[number] for number in range(len(tasks))]


def _in_turn(tasks: Sequence[Task], progress: Callable[[int, int], None] | None) -> Iterable[Entry]:
    for number, task in enumerate(tasks, start=1):
        yield task()
        if progress is not None:
            progress(number, len(tasks))


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Over the seeds that have the figure; None when none has."""
        found = [value for value in values if value is not None]
        return cls(statistics.fmean(found), min(found), max(found)) if found else None


def model_ceilings(scenario: Scenario) -> dict[str, list[Ceiling]]:
    """Each model's physical ceiling at its interactive and its batch ITL SLO.

    The requests are drawn with replacement from those that the scenario brings for the model, in a steady
    mix; models without requests are left out.
    """
    workload = scenario.reading().workload
    found: dict[str, list[Ceiling]] = {}
    for index, model in enumerate(scenario.settings.models):
        mine = np.flatnonzero(workload.model == index)
        if not len(mine):
            continue
        chosen = np.random.default_rng(scenario.settings.seed).choice(mine, CEILING_REQUESTS)
        prompt, output, _ = fit_to_context(
            workload.prompt_tokens[chosen], workload.output_tokens[chosen], longest(model.profile)
        )
        found[model.name] = ceilings(
            model.profile,
            prompt,
            output,
            sorted({model.itl_slo_s, model.batch_itl_slo_s}),
            batch_sizes=[size for size in _CEILING_BATCH_SIZES if size <= model.max_batch_size],
            budgets=[budget for budget in _CEILING_BUDGETS if budget <= model.max_step_token_budget],
            static_pair=(
                model.initial_batch_size,
                model.initial_step_token_budget or model.profile.default_step_token_budget,
            ),
        )
    return found
