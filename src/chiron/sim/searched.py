"""Runs under policies of which some are searched for first, with the reported requests in hand."""

from __future__ import annotations

from chiron.sim.clairvoyant.search import NAME as CLAIRVOYANT
from chiron.sim.clairvoyant.search import feasible
from chiron.sim.policies import PolicyChoice
from chiron.sim.runs import Run, run, smallest_fleet
from chiron.sim.scenario import Scenario

_FIXED = ("fixed", "fixed-model")
SEARCHED = (*_FIXED, CLAIRVOYANT)
"""Policies that get the smallest fleet, or the best schedule, that attains."""
_TOLD = PolicyChoice(CLAIRVOYANT)


def check_policy(policy: PolicyChoice) -> None:
    """Raises ConfigError for a policy that cannot be made; `oracle-feasible` is made from the workload."""
    if policy != _TOLD:
        policy.make()


def none_attains(policy: PolicyChoice) -> str:
    """What there is to say when nothing that was searched for this policy attains."""
    if policy == _TOLD:
        return "no schedule that was tried attains"
    return "no fixed fleet that the scenario allows attains"


def run_searched(scenario: Scenario, policy: PolicyChoice) -> tuple[Run, int | None] | None:
    """The run, and how many instances a fixed fleet has; None: nothing that was searched attains.

    Raises:
        ConfigError: a policy or a trace that cannot be used.
        OracleViolatedError: a defect of the simulator.
    """
    reading = scenario.reading()
    if policy == _TOLD:
        best = feasible(scenario, reading)
        return None if best is None else (best, None)
    if policy.name not in _FIXED:
        return run(scenario, policy, reading=reading), None
    smallest = smallest_fleet(scenario, policy, reading)
    if smallest is None:
        return None
    fleet = sum(sum(model.initial.values()) for model in smallest.settings.models)
    return run(smallest, policy, reading=reading), fleet
