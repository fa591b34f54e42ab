"""Attainment against arrival rate, interactive requests alone, on a cluster that the last rate exceeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.compared import COMPARED, compared
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import sweep_plots, sweep_tables
from chiron.sim.paper.sections import Section
from chiron.sim.paper.workloads import GPUS_PER_RATE, MOST_GPUS, model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Traffic

NAME = "rates-w-a"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Rates of one mix of models, in requests per second, all models together."""

    shares: Mapping[str, float]
    """Model → its share of the rate."""
    gpu_budget: int
    quick: tuple[float, ...]
    full: tuple[float, ...]
    quick_s: float
    """Duration: at least 20 load times of the slowest model after the warm-up, or nearly so."""
    full_s: float
    policies: tuple[str, ...] = COMPARED
    fleet_at: tuple[float, ...] = ()
    """Rates at which the smallest fixed fleet is searched for too, in full."""


SWEEPS = {
    "8b": Sweep({"8b": 1.0}, 6, (40, 130), (20, 60, 105, 130), 600, 1500, fleet_at=(60,)),
    "70b": Sweep({"70b": 1.0}, 12, (10, 34), (6, 20, 34), 1140, 2100, fleet_at=(20,)),
    "both": Sweep({"8b": 0.85, "70b": 0.15}, 12, (40,), (30, 110), 1140, 2100, fleet_at=(30,)),
    "8b-large": Sweep({"8b": 1.0}, MOST_GPUS, (), (600,), 0, 1200, ("chiron", "llumnix")),
}
"""By the names of the mixes: one model alone on a few GPUs, both together, and one on all GPUs."""


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
        duration_s=sweep.quick_s if quick else sweep.full_s,
        warmup_s=sweep.quick_s / 5 if quick else 600,
        gpu_budget=sweep.gpu_budget,
    )


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every rate under every policy; the search for a fixed fleet, which is many runs, at some."""
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
        for policy in (compared(quick=True) if size.quick else sweep.policies)
        if policy != "fixed" or rate in sweep.fleet_at
        for seed in size.reported(quick=1, full=1)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """A table and three plots for each mix of models."""
    return Section(
        RATES_W_A.title,
        (
            "On 6 GPUs for 8B, on 12 for 70B (4 an instance) and for both models together, of whose requests "
            "15 % are for 70B; the last rate of each is more than these can serve. 8b-large is 8B on 50.",
        ),
        sweep_tables(outcomes, "rate", "requests per second"),
        sweep_plots(outcomes, NAME, "rate", "requests per second"),
    )


RATES_W_A = Experiment(
    NAME,
    "Attainment against arrival rate, interactive only (W_A)",
    "Interactive requests at rising rates, the last one more than the cluster can serve: who keeps the SLOs "
    "for how long, and with how many GPU-hours.",
    cases,
    tell,
)
