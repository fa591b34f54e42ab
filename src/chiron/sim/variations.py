"""Named changes of a scenario: what the world might do otherwise while policies are told the same beforehand.

Robustness: GPU-hours of a varied run are told plainly and over the lower bound of the varied truth. Slower
steps and longer answers are more work for anybody, so that the ratio says what not knowing has cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

from chiron.config import ConfigError
from chiron.engine import Speculation
from chiron.sim.scenario import Scenario
from chiron.sim.scenario_checks import check_slos
from chiron.sim.settings import SimModel, SimSettings

SLOWER, FASTER = 1.3, 0.7
"""Step times, over what profiles say."""
DRIFT = 0.5
"""Share by which mean output lengths grow or shrink over the run."""
LOADS = 3.0
"""Load times, over what is configured."""
LATE_S = 5.0
"""From the making of a report until the controller has it."""
SHARED_PREFIXES, PREFIX_SHARE = 8, 0.5
"""Of a workload for prefix caching: half of each prompt is one of so many beginnings. Assumed."""
SPECULATION = Speculation(draft_tokens=3, acceptance_rate=0.7)
"""Assumed, within what Leviathan et al. (ICML 2023) measure for small drafting models."""


@dataclass(frozen=True, slots=True)
class Variation:
    """One named change."""

    about: str
    apply: Callable[[Scenario], Scenario]


def _steps(factor: float) -> Callable[[Scenario], Scenario]:
    """The engines' steps take `factor` times as long; profiles and the snapshots of policies stay."""

    def apply(scenario: Scenario) -> Scenario:
        factors = scenario.settings.step_time_factor * factor
        return _with(scenario, step_time_factor=factors)

    return apply


def _drift(share: float) -> Callable[[Scenario], Scenario]:
    def apply(scenario: Scenario) -> Scenario:
        return dataclasses.replace(scenario, output_drift=(1 + scenario.output_drift) * (1 + share) - 1)

    return apply


def _slow_loads(scenario: Scenario) -> Scenario:
    """Loads take longer than configured; policies learn it from the first that they see."""

    def slow(model: SimModel) -> SimModel:
        return dataclasses.replace(
            model, load_time_s=LOADS * model.load_s, presumed_load_time_s=model.presumed_load_s
        )

    return _models(scenario, slow)


def _late(scenario: Scenario) -> Scenario:
    """All reports to the controller come late. What routers see of workers is another way, and stays."""
    telemetry = dataclasses.replace(scenario.settings.telemetry, delay_s=LATE_S)
    return _with(scenario, telemetry=telemetry)


def _prefix_caching(scenario: Scenario) -> Scenario:
    replace = dataclasses.replace
    many, share = SHARED_PREFIXES, PREFIX_SHARE
    return replace(
        scenario,
        traffic=tuple(
            replace(source, shared_prefixes=many, prefix_share=share) for source in scenario.traffic
        ),
        backlogs=tuple(
            replace(source, shared_prefixes=many, prefix_share=share) for source in scenario.backlogs
        ),
    )


def _speculation(scenario: Scenario) -> Scenario:
    def speculating(model: SimModel) -> SimModel:
        return dataclasses.replace(model, profile=model.profile.replace(speculation=SPECULATION))

    return _models(scenario, speculating)


def _models(scenario: Scenario, change: Callable[[SimModel], SimModel]) -> Scenario:
    return _with(scenario, models=tuple(change(model) for model in scenario.settings.models))


def _with(scenario: Scenario, **settings: object) -> Scenario:
    changed: SimSettings = dataclasses.replace(scenario.settings, **settings)  # type: ignore[arg-type]
    return dataclasses.replace(scenario, settings=changed)


VARIATIONS: Mapping[str, Variation] = {
    "steps-slower": Variation("step times +30 %", _steps(SLOWER)),
    "steps-faster": Variation("step times -30 %", _steps(FASTER)),
    "lengths-growing": Variation("mean output length +50 % over the run", _drift(DRIFT)),
    "lengths-shrinking": Variation("mean output length -50 % over the run", _drift(-DRIFT)),
    "loads-slower": Variation("load times × 3, the configured estimate as it was", _slow_loads),
    "telemetry-late": Variation("reports reach the controller 5 s late", _late),
    "late-and-growing": Variation(
        "reports 5 s late and mean output length +50 % over the run",
        lambda scenario: _drift(DRIFT)(_late(scenario)),
    ),
    "prefix-caching": Variation("half of each prompt is one of 8 beginnings, cached", _prefix_caching),
    "speculation": Variation("speculative decoding: 3 drafts, 70 % accepted", _speculation),
}
"""By the names that commands use."""
ROBUSTNESS = tuple(VARIATIONS)[:7]
"""Those against which a policy has to hold its own."""


def vary(scenario: Scenario, names: str) -> Scenario:
    """The scenario with these changes, in this order; its name tells them.

    Args:
        scenario: what is changed.
        names: of variations, separated by commas.

    Raises:
        ConfigError: an unknown name, or an SLO that nobody can keep any more.
    """
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in VARIATIONS:
            raise ConfigError(f"unknown variation {name!r}; known are {', '.join(VARIATIONS)}")
    varied = reduce(lambda found, name: VARIATIONS[name].apply(found), wanted, scenario)
    check_slos(varied.settings, f"{scenario.file}, {', '.join(wanted)}")
    return dataclasses.replace(varied, name=f"{scenario.name}, {', '.join(wanted)}")
