"""Attainment against arrival rate, interactive requests alone, on a cluster that the last rate exceeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import sweep_plots, sweep_tables
from chiron.sim.paper.sections import Section
from chiron.sim.paper.workloads import GPUS_PER_RATE, model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Traffic

NAME = "rates-w-a"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rates of one mix of models."""

    shares: Mapping[str, float]
    """Model → its share of the rate."""
    gpu_budget: int
    quick: tuple[float, ...]
    """Requests per second, all models together."""
    full: tuple[float, ...]


SWEEPS = {"8b": Sweep({"8b": 1.0}, 10, (60, 150, 240), (30, 90, 150, 190, 240))}
POLICIES = ("chiron", "chiron-paper", "llumnix", "llumnix-queue", "fixed")


def scenario_at(mix: str, rate_per_s: float, *, quick: bool) -> Scenario:
    """The workload of a mix of models at a rate."""
    sweep = SWEEPS[mix]
    rates = {name: rate_per_s * part for name, part in sweep.shares.items()}
    # The last rates need more than there is: each model then begins with its part of that.
    most = min(1.0, sweep.gpu_budget / sum(GPUS_PER_RATE[name] * rate for name, rate in rates.items()))
    return on_a100s(
        f"W_A {mix} {rate_per_s:g} per s",
        [model(name, most * GPUS_PER_RATE[name] * rate) for name, rate in rates.items()],
        traffic=[Traffic(model=name, rate_per_s=rate) for name, rate in rates.items()],
        duration_s=1200 if quick else 1800,
        warmup_s=300 if quick else 600,
        gpu_budget=sweep.gpu_budget,
    )


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every rate under every policy."""
    return [
        Case(
            NAME,
            {"mix": mix, "rate": rate},
            scenario_at(mix, rate, quick=size.quick),
            PolicyChoice(policy),
            seed,
        )
        for mix, sweep in SWEEPS.items()
        for rate in (sweep.quick if size.quick else sweep.full)
        for policy in POLICIES
        for seed in size.reported(quick=1, full=2)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """A table and three plots for each mix of models."""
    return Section(
        RATES_W_A.title,
        (),
        sweep_tables(outcomes, "rate", "requests per second"),
        sweep_plots(outcomes, NAME, "rate", "requests per second"),
    )


RATES_W_A = Experiment(
    NAME,
    "Attainment against arrival rate, interactive only (W_A)",
    "Interactive requests at rising rates on a cluster of 10 GPUs, the last rate more than it can serve: who "
    "keeps the SLOs for how long, and with how many GPU-hours.",
    cases,
    tell,
)
