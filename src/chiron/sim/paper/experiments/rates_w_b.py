"""Attainment against rate and backlog: interactive requests beside batch ones that are due (W_B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.compared import compared
from chiron.sim.paper.experiment import Experiment, Size
from chiron.sim.paper.experiments.rate_tables import sweep_plots, sweep_tables
from chiron.sim.paper.sections import Section
from chiron.sim.paper.workloads import GPUS_PER_RATE, model, on_a100s
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario
from chiron.sim.sources import Backlog, Traffic

NAME = "rates-w-b"


@dataclass(frozen=True, slots=True)
class Load:
    """One point of the sweep."""

    rates: Mapping[str, float]
    """Model → interactive requests per second."""
    backlogs: Mapping[str, int]
    """Model → batch requests."""

    @property
    def label(self) -> str:
        """Rates and backlogs, of all models together."""
        return f"{sum(self.rates.values()):g}/s + {sum(self.backlogs.values()):,}"


def _one(name: str, *points: tuple[float, int]) -> tuple[Load, ...]:
    return tuple(Load({name: rate}, {name: backlog}) for rate, backlog in points)


QUICK = {"8b": _one("8b", (20, 25_000)), "70b": _one("70b", (4, 5_000))}
"""The deadline is a third of the whole run's, and so is the horizon."""
FULL = {
    "8b": _one("8b", (20, 30_000), (20, 120_000)),
    "70b": _one("70b", (4, 6_000), (10, 12_000)),
    "both": (Load({"8b": 20.0, "70b": 3.0}, {"8b": 40_000, "70b": 6_000}),),
}


FLEET_AT = "20/s + 30,000", "4/s + 6,000"
"""Where the smallest fixed fleet is searched for, which is many runs."""


def scenario_at(mix: str, load: Load, *, quick: bool) -> Scenario:
    """Traffic for an hour and a half, and a backlog after a quarter of an hour that is due in an hour."""
    scale = 1 / 3 if quick else 1.0
    return on_a100s(
        f"W_B {mix} {load.label}",
        [model(name, GPUS_PER_RATE[name] * rate) for name, rate in load.rates.items()],
        traffic=[Traffic(model=name, rate_per_s=rate) for name, rate in load.rates.items()],
        backlogs=[
            Backlog(model=name, requests=count, arrive_s=900 * scale, deadline_in_s=3600 * scale)
            for name, count in load.backlogs.items()
        ],
        duration_s=5400 * scale,
        warmup_s=240 if quick else 600,
        gpu_budget=20,
    )


def cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    """Every point under every policy; the search for a fixed fleet at some."""
    return [
        Case(
            NAME,
            {"mix": mix, "load": load.label},
            scenario_at(mix, load, quick=size.quick),
            PolicyChoice(policy),
            seed,
        )
        for mix, loads in (QUICK if size.quick else FULL).items()
        for load in loads
        for policy in compared(quick=size.quick)
        if policy != "fixed" or load.label in FLEET_AT
        for seed in size.reported(quick=1, full=1)
    ]


def tell(outcomes: Sequence[Outcome]) -> Section:
    """A table and three plots for each mix of models."""
    return Section(
        RATES_W_B.title,
        (
            "Interactive requests per second, and batch requests that arrive at once, on 20 GPUs at most. "
            "The backlog is due after an hour (in a quick run after 20 minutes); traffic goes on for half as "
            "long again. Attainment is of all requests; a run attains with 99 % of the interactive ones and "
            "every deadline.",
        ),
        sweep_tables(outcomes, "load", "load"),
        sweep_plots(outcomes, NAME, "load", "load"),
    )


RATES_W_B = Experiment(
    NAME,
    "Attainment against arrival rate and backlog (W_B)",
    "Interactive requests beside a batch backlog, rate and backlog swept: what room until deadlines is "
    "worth.",
    cases,
    tell,
)
