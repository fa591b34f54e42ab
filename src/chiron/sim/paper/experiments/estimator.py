"""Estimated waits against those that came, over independent runs that are anything but stationary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chiron.engine import get_profile
from chiron.policy.words import RequestClass, Role
from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import again
from chiron.sim.paper.experiments.telling import expected, grouped
from chiron.sim.paper.sections import (
    Axis,
    Finding,
    Plot,
    Point,
    Section,
    Series,
    Table,
    number,
    row,
    share,
    table,
)
from chiron.sim.paper.workloads import PROFILES
from chiron.sim.policies import PolicyChoice
from chiron.sim.queue_settings import QueueSettings
from chiron.sim.runs import run
from chiron.sim.scenario import Scenario
from chiron.sim.settings import FaultSettings, GpuType, SimModel, SimSettings
from chiron.sim.sources import Traffic
from chiron.sim.wait_figures import LONG_QUEUE, median_relative_error, r_squared

NAME = "estimator"
PUBLISHED_R2 = 0.99
BINS = ((200, 1000), (1000, LONG_QUEUE), (LONG_QUEUE, 5000), (5000, 1_000_000))
"""Requests ahead: more than the first and at most the second."""
PAIRS_PER_BIN = 2
"""Estimates of a run that count, in each bin: those of one run are not independent."""
QUANTILE = 0.95
SUBMITTED_PER_S = 1000.0
"""Pace at which a file's requests arrive: who waits first is first."""
_TOKENS_PER_GPU_S = 5000.0
"""Rough throughput of an 8B model on an A100, to draw loads by."""
_PROFILE = get_profile(PROFILES["8b"])


@dataclass(frozen=True, slots=True)
class Scale:
    """How large runs are."""

    instances: tuple[int, int]
    """Drawn from the first up to below the second."""
    waiting: tuple[float, float]
    """Requests that are meant to wait, drawn evenly on a logarithmic scale."""
    warm_up_s: float
    """Traffic from which the estimator learns, two files among it."""


QUICK = Scale((2, 3), (4000.0, 10_000.0), 400.0)
FULL = Scale((2, 6), (3000.0, 40_000.0), 900.0)
TROUBLES = ("spike", "step", "backlog")
FLEETS = ("chiron", "failures")


def scenario_drawn(seed: int, scale: Scale) -> tuple[str, str, Scenario]:
    """The seed's cluster, loads and trouble: which trouble, what changes the fleet, and the scenario."""
    rng = np.random.default_rng((0xE58, seed))
    instances = int(rng.integers(*scale.instances))
    gpus = 2 * instances + int(rng.integers(0, 5))
    sigma = float(rng.uniform(0.6, 1.1))
    ours, theirs = (_lengths(rng, sigma) for _ in range(2))
    capacity = instances * _TOKENS_PER_GPU_S
    base = capacity / ours["output_mean"] * float(rng.uniform(0.2, 0.5))
    trouble = TROUBLES[int(rng.integers(len(TROUBLES)))]
    fleet = FLEETS[int(rng.integers(len(FLEETS)))]
    cv = float(rng.choice([1.0, 2.0, 4.0, 8.0]))
    size = float(np.exp(rng.uniform(*np.log(scale.waiting))))
    at_s = scale.warm_up_s + float(rng.uniform(0, 60))
    height = float(rng.uniform(1.5, 3.0)) * capacity / ours["output_mean"]
    length_s = size / (height - capacity / ours["output_mean"])
    shape: dict[str, Any] = {"rate_per_s": base, "cv": cv}
    end_s = at_s + length_s + 300.0
    files = [(20.0, 1500.0 * instances), (scale.warm_up_s * 0.55, 1500.0 * instances)]
    if trouble == "spike":
        shape |= {
            "shape": "spike",
            "spike_factor": height / base,
            "spike_at_s": at_s,
            "spike_length_s": length_s,
        }
    elif trouble == "step":
        shape |= {"shape": "step", "step_at_s": at_s, "step_rate_per_s": height}
        end_s = at_s + length_s
    else:
        period_s = float(rng.uniform(120.0, 600.0))
        shape |= {"shape": "diurnal", "swing": 0.4, "period_s": period_s, "peak_s": period_s / 2}
        end_s = at_s + 600.0 + 2.0 * size * theirs["output_mean"] / capacity
        parts = rng.dirichlet(np.ones(int(rng.integers(1, 4))))
        files += [(at_s + float(rng.uniform(0, 300)), size * float(part)) for part in parts]
    due_s = float(rng.uniform(600, 3600))
    traffic = [Traffic(model="m", **shape, **ours)]
    traffic += [
        Traffic(
            model="m",
            request_class="batch",
            deadline_in_s=due_s,
            rate_per_s=SUBMITTED_PER_S,
            start_s=start_s,
            shape="step",
            step_at_s=max(1.0, requests) / SUBMITTED_PER_S,
            **theirs,
        )
        for start_s, requests in files
    ]
    one = SimModel(
        "m",
        _PROFILE,
        initial={Role.MIXED: instances},
        load_time_s=float(rng.uniform(15, 60)),
        load_time_spread=float(rng.uniform(0, 0.3)),
    )
    faults = FaultSettings()
    if fleet == "failures":
        faults = FaultSettings(node_mtbf_s=gpus * float(rng.uniform(600, 2400)), node_repair_s=60.0)
    settings = SimSettings(
        (one,),
        (GpuType("a100", gpus, 1),),
        step_noise=0.02,
        faults=faults,
        queues=QueueSettings(estimate_every=20, estimate_quantile=QUANTILE),
        horizon_s=end_s + 3600.0,
    )
    name = f"waits {seed}: {trouble}, {fleet}"
    return trouble, fleet, Scenario(Path(f"{name}.toml"), name, "", end_s, settings, tuple(traffic))


def _lengths(rng: np.random.Generator, sigma: float) -> dict[str, Any]:
    prompt, output = float(rng.uniform(80, 400)), float(rng.uniform(150, 500))
    return {"lengths": "lognormal", "prompt_mean": prompt, "output_mean": output, "sigma": sigma}


def estimates(case: Case) -> Figures:
    """A few estimates of the run in each bin: requests ahead, estimate, quantile and wait in seconds."""
    result = run(case.scenario.with_seed(case.seed), case.policy).result
    assert result.estimator is not None
    kind = RequestClass.BATCH if case.labels["trouble"] == "backlog" else RequestClass.INTERACTIVE
    rng = np.random.default_rng((0xC5, case.seed))
    chosen = []
    for more_than, at_most in BINS:
        mine = [
            wait
            for wait in result.estimator.waits
            if wait.request_class is kind
            and wait.at_s >= float(case.labels["learned_s"])
            and more_than < wait.ahead <= at_most
            and wait.actual_s > 0
        ]
        chosen += [mine[at] for at in sorted(rng.permutation(len(mine))[:PAIRS_PER_BIN])]
    return {
        "pairs": [(wait.ahead, wait.mean_s, wait.quantile_s, wait.actual_s) for wait in chosen],
        "unanswered": result.estimator.unanswered,
        "unknown": result.estimator.unknown,
    }


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """A run for each seed."""
    scale = QUICK if size.quick else FULL
    found = []
    for seed in size.reported(quick=10, full=40):
        trouble, fleet, scenario = scenario_drawn(seed, scale)
        choice = (
            PolicyChoice("chiron") if fleet == "chiron" else PolicyChoice("chiron-static", autoscaler="fixed")
        )
        labels: dict[str, str | float] = {"trouble": trouble, "fleet": fleet, "learned_s": scale.warm_up_s}
        found.append(Case(NAME, labels, scenario, choice, seed, measure=estimates))
    return found


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of some estimates."""

    pairs: int
    r2: float | None
    error: float | None
    """Median of |estimate - wait| / wait."""
    covered: float | None
    """Share of waits within the estimated quantile."""
    position: float | None
    """R² of position alone: requests ahead times the mean time for each, known in hindsight."""


def accuracy(pairs: Sequence[Sequence[float]]) -> Accuracy:
    """Of (requests ahead, estimate, quantile, wait)."""
    if not pairs:
        return Accuracy(0, None, None, None, None)
    ahead, estimated, quantile, actual = np.array(pairs, dtype=np.float64).T
    position = ahead * (actual.sum() / ahead.sum())
    return Accuracy(
        len(pairs),
        r_squared(estimated, actual),
        median_relative_error(estimated, actual),
        float(np.mean(actual <= quantile)),
        r_squared(position, actual),
    )


def tell(outcomes: Sequence[Outcome]) -> Section:
    """Accuracy by queue size and by trouble, and every estimate beside its wait."""
    return Section(
        ESTIMATOR.title,
        (
            expected(f"R² of {PUBLISHED_R2} behind more than {LONG_QUEUE:,} requests."),
            "Every seed is a run of its own with another cluster, other lengths and another trouble: a spike "
            "or a step of interactive requests, or files beside traffic that fluctuates and preempts them; "
            f"`chiron` scales the fleet, or nodes fail. At most {PAIRS_PER_BIN} estimates of a run count in "
            "each bin, for those of one queue that drains depend on each other: there position alone would "
            "do. R² here is over all runs together, beside that of position alone (the mean time for each "
            "request ahead, known in hindsight).",
        ),
        (_by_size(outcomes), _by_trouble(outcomes)),
        (_plot(outcomes),),
        _findings(outcomes),
    )


def _pairs(outcomes: Sequence[Outcome], more_than: int, at_most: int) -> list[Sequence[float]]:
    return [pair for each in outcomes for pair in each.figures["pairs"] if more_than < pair[0] <= at_most]


def _long(outcomes: Sequence[Outcome]) -> list[Sequence[float]]:
    return _pairs(outcomes, LONG_QUEUE, BINS[-1][1])


_COLUMNS = (
    "estimates",
    "R²",
    "median relative error",
    f"waits within the {QUANTILE:.0%} quantile",
    "R² of position alone",
)


def _cells(found: Accuracy) -> tuple[str | None, ...]:
    return (
        str(found.pairs),
        number(found.r2, ".3f"),
        share(found.error),
        share(found.covered),
        number(found.position, ".3f"),
    )


def _by_size(outcomes: Sequence[Outcome]) -> Table:
    names = [f"{low:,}–{high:,}" for low, high in BINS[:-1]] + [f"more than {BINS[-1][0]:,}"]
    rows = [
        row(name, *_cells(accuracy(_pairs(outcomes, *limits))))
        for name, limits in zip(names, BINS, strict=True)
    ]
    rows.append(
        row(f"all beyond {LONG_QUEUE:,}", *_cells(accuracy(_long(outcomes))), command=again(outcomes))
    )
    return table("By queue size", ("requests ahead", *_COLUMNS), rows)


def _by_trouble(outcomes: Sequence[Outcome]) -> Table:
    rows = [
        row(trouble, fleet, str(len(mine)), *_cells(accuracy(_long(mine))), command=again(mine))
        for (trouble, fleet), mine in sorted(grouped(outcomes, "trouble", "fleet").items())
    ]
    columns = ("trouble", "fleet changes by", "runs", *_COLUMNS)
    return table(f"By trouble, behind more than {LONG_QUEUE:,} requests", columns, rows)


def _plot(outcomes: Sequence[Outcome]) -> Plot:
    series = tuple(
        Series(trouble, tuple(Point(pair[1], pair[3]) for pair in _long(mine)))
        for (trouble,), mine in sorted(grouped(outcomes, "trouble").items())
    )
    axes = Axis("estimated wait, s", least=0.0), Axis("wait, s", least=0.0)
    title = f"Waits behind more than {LONG_QUEUE:,} requests"
    return Plot(NAME, title, *axes, series, "dots", diagonal=True)


def _findings(outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    found = accuracy(_long(outcomes))
    if found.r2 is None or found.error is None:
        return (Finding("estimated waits", f"R² {PUBLISHED_R2}", "too few estimates", "no figure"),)
    groups: Mapping[str, Accuracy] = {
        trouble: accuracy(_long(mine)) for (trouble,), mine in sorted(grouped(outcomes, "trouble").items())
    }
    parts = ", ".join(f"{name} {each.r2:.3f}" for name, each in groups.items() if each.r2 is not None)
    return (
        Finding(
            f"estimated waits behind more than {LONG_QUEUE:,} requests",
            f"R² {PUBLISHED_R2}",
            f"R² {found.r2:.3f}, median relative error {found.error:.1%}, {found.pairs} estimates of "
            f"{len(outcomes)} runs",
            "met" if found.r2 >= PUBLISHED_R2 else "not met",
            f"By trouble: {parts}. Across runs, not within one draining queue.",
        ),
    )


ESTIMATOR = Experiment(
    NAME,
    "Estimated waits",
    "Predicted against actual waiting time in the router's queues, by queue size, over independent runs with "
    "bursts, preemption and a fleet that changes.",
    cases,
    tell,
)
