"""One simulated run of an experiment, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import attains
from chiron.sim.scenario import Scenario
from chiron.sim.searched import none_attains, run_searched

Figures = Mapping[str, Any]
"""What a run found, ready for JSON."""
Measure = Callable[["Case"], Figures]
"""Makes the figures of a case; a function of a module, since another process calls it."""


class NoFleetError(Exception):
    """No fixed fleet that the scenario allows attains, or no schedule, so that there is nothing to report."""


def simulated(case: Case) -> Figures:
    """The figures of `chiron sim run` but for `wall_s`, and whether the run attains.

    A fixed policy gets the smallest fleet that attains, as in `chiron sim compare`, and `fleet` tells how
    many instances that is; `oracle-feasible` is searched for likewise. With `timeline`, `timeline` and
    `actions` hold what happened when.

    Raises:
        NoFleetError: a fixed policy or `oracle-feasible`, and none attains.
        ConfigError: a policy or a trace that cannot be used.
        OracleViolatedError: a defect of the simulator.
    """
    found = run_searched(case.scenario.with_seed(case.seed), case.policy)
    if found is None:
        raise NoFleetError(none_attains(case.policy))
    done, fleet = found
    figures = done.to_json()
    del figures["wall_s"]
    figures |= {"attains": attains(done.result), "fleet": fleet}
    if case.timeline:
        figures["timeline"] = [_fields(point) for point in done.result.timeline]
        figures["actions"] = [_fields(action) for action in done.result.actions]
    return figures


def _fields(record: Any) -> dict[str, Any]:
    plain = {name: getattr(record, name) for name in record.__slots__}
    return {
        name: {getattr(key, "name", str(key)).lower(): each for key, each in value.items()}
        if isinstance(value, Mapping)
        else value
        for name, value in plain.items()
    }


@dataclass(frozen=True, slots=True)
class Case:
    """One run of an experiment."""

    experiment: str
    """Name of the experiment that it belongs to."""
    labels: Mapping[str, str | float]
    """What it is in its experiment: the value on the x axis, the row, the variant. With policy and seed they
    tell it from every other case there."""
    scenario: Scenario
    policy: PolicyChoice
    seed: int
    """Takes the place of the scenario's."""
    timeline: bool = False
    """Its figures hold the timeline and the scaling actions."""
    measure: Measure = simulated
    """What makes the figures."""
    late: bool = False
    """It runs after all that are not late, of any experiment: whoever ends early can do without it."""

    @property
    def key(self) -> str:
        """What `--case` calls it: labels, policy and seed, in lower case, with commas between."""
        label = self.policy.label
        values = [str(value) for value in self.labels.values() if str(value) != label]
        parts = (*(_plain(value) for value in values), _plain(label), str(self.seed))
        return ",".join(part for part in parts if part)


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.+_=-]+", "-", text.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case that ran."""

    case: Case
    figures: Figures
    command: str = ""
    """Runs the case again, alone."""
