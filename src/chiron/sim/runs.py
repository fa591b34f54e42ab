"""Runs a scenario under a policy, and says what it found beside what no policy can beat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chiron.policy.words import Role
from chiron.sim.autoscalers import Beforehand
from chiron.sim.decision_log import DecisionLog
from chiron.sim.oracle import oracle_served_gpu_s
from chiron.sim.policies import PolicyChoice
from chiron.sim.results import SimResult
from chiron.sim.scenario import Reading, Scenario
from chiron.sim.settings import SimModel, SimSettings
from chiron.sim.simulator import Progress, simulate
from chiron.sim.workload import Workload

INTERACTIVE_GOAL = 0.99
"""Share of interactive requests that a fleet must serve within their SLOs to attain."""
MALFORMED_NAMED = 1000
"""Rows of traces that the JSON names; all are counted."""
_ORACLE_SLACK = 1.0 + 1e-9


class OracleViolatedError(AssertionError):
    """A run used fewer GPU-hours than the lower bound allows: the simulator or the bound is wrong."""


@dataclass(frozen=True, slots=True)
class Run:
    """One finished run."""

    scenario: Scenario
    policy: PolicyChoice
    reading: Reading
    result: SimResult
    oracle_gpu_hours: float
    """Lower bound for the requests that finished, of those that count."""

    @property
    def oracle_ratio(self) -> float | None:
        """GPU-hours over the bound; None when nothing finished."""
        return self.result.gpu_hours / self.oracle_gpu_hours if self.oracle_gpu_hours else None

    @property
    def gpu_cost(self) -> float | None:
        """What the GPUs cost; None when the scenario has no price."""
        priced = any(kind.price_per_gpu_hour is not None for kind in self.scenario.settings.gpu_types)
        return self.result.gpu_cost if priced else None

    def to_json(self) -> dict[str, Any]:
        """Everything that the run found and was given; the same for the same seed but for `wall_s`."""
        return {
            **self.result.to_json(),
            "gpu_cost": self.gpu_cost,
            "scenario": self.scenario.name,
            "oracle_lb": {"gpu_hours": self.oracle_gpu_hours, "ratio": self.oracle_ratio},
            "workload": {
                "shortened": self.reading.shortened,
                "malformed_rows": len(self.reading.bad_rows),
                "malformed": [str(bad) for bad in self.reading.bad_rows[:MALFORMED_NAMED]],
                "skipped_rows": sum(self.reading.skipped.values()),
                "skipped": dict(self.reading.skipped),
            },
            "parameters": parameters(self.scenario, self.policy),
        }


def run(
    scenario: Scenario,
    policy: PolicyChoice,
    *,
    reading: Reading | None = None,
    progress: Progress | None = None,
    log: DecisionLog | None = None,
) -> Run:
    """Simulates a scenario under a policy.

    Args:
        scenario: what is served on what; its seed makes the workload and the simulation.
        policy: who decides.
        reading: the scenario's workload, when it has been drawn already.
        progress: called now and then with the simulated time, the requests that have ended, and all.
        log: takes down what the global autoscaler decides.

    Raises:
        ConfigError: a policy or a trace that cannot be used.
        OracleViolatedError: the run used less than the lower bound, beyond what step noise explains.
    """
    made = policy.make(Beforehand(tuple(_as_told(model) for model in scenario.settings.models)))
    reading = scenario.reading() if reading is None else reading
    settings = made.settings(scenario.settings)
    result = simulate(
        settings,
        reading.workload,
        autoscaler=made.autoscaler,
        dispatcher=made.dispatcher,
        local=made.local,
        migration=made.migration,
        policy=made.label,
        progress=progress,
        log=log,
    )
    outcomes = result.outcomes
    finished = outcomes.counted & ~np.isnan(outcomes.finish_s)
    bound = oracle_served_gpu_s(settings, reading.workload, finished) / 3600
    # Noise on step times has mean 1, yet a short run may draw less.
    if bound > result.gpu_hours * (_ORACLE_SLACK + settings.step_noise):
        raise OracleViolatedError(
            f"{scenario.name} under {made.label}, seed {result.seed}: {result.gpu_hours:.6g} GPU-hours, less "
            f"than the lower bound of {bound:.6g}"
        )
    return Run(scenario, policy, reading, result, bound)


def _as_told(model: SimModel) -> SimModel:
    """As somebody reckons with it who has not seen it load."""
    return dataclasses.replace(model, load_time_s=model.presumed_load_s, presumed_load_time_s=None)


def attains(result: SimResult) -> bool:
    """Tells whether 99 % of the interactive requests and all batch deadlines were met."""
    shares = result.slo_attainment
    interactive = shares.interactive is None or shares.interactive >= INTERACTIVE_GOAL
    return interactive and (shares.batch is None or shares.batch == 1.0)


def smallest_fleet(
    scenario: Scenario,
    policy: PolicyChoice,
    reading: Reading,
) -> Scenario | None:
    """The scenario with the smallest fixed fleet of mixed instances that attains, found by bisection.

    Each model's fleet is searched with that model's requests alone, for fixed fleets share nothing. The
    search sees the very requests of the reported run: a reference that no live policy can know.
    The fleet is no smaller than min_instances and no larger than max_instances. None when not even the
    largest attains, or the fleets of several models do not fit together.
    """
    settings = scenario.settings
    models: list[SimModel] = []
    for index, model in enumerate(settings.models):
        mine = reading.workload.model == index
        if not mine.any():
            models.append(dataclasses.replace(model, initial={}, min_instances=0))
            continue
        alone = dataclasses.replace(settings, models=(model,))
        single = dataclasses.replace(scenario, settings=alone)
        found = _search(single, policy, part_of_model(reading, index))
        if found is None:
            return None
        models.append(fixed_model(model, found))
    needed = sum(sum(model.initial.values()) * model.profile.gpus for model in models)
    if needed > most_gpus(settings):
        return None
    return dataclasses.replace(scenario, settings=dataclasses.replace(settings, models=tuple(models)))


def _search(scenario: Scenario, policy: PolicyChoice, reading: Reading) -> int | None:
    model = scenario.settings.models[0]

    def attained_by(count: int) -> bool:
        settings = dataclasses.replace(scenario.settings, models=(fixed_model(model, count),))
        return attains(run(dataclasses.replace(scenario, settings=settings), policy, reading=reading).result)

    most = most_instances(scenario.settings, model)
    high = max(1, model.min_instances)
    low = high - 1
    if high > most:
        return None
    while not attained_by(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        if attained_by(middle):
            high = middle
        else:
            low = middle
    return high


def fixed_model(model: SimModel, count: int) -> SimModel:
    """The model with so many mixed instances, no more and no fewer."""
    return dataclasses.replace(
        model, initial={Role.MIXED: count}, min_instances=min(count, model.min_instances), max_instances=0
    )


def most_gpus(settings: SimSettings) -> int:
    """GPUs that may be held at once."""
    there_are = sum(kind.nodes * kind.gpus_per_node for kind in settings.gpu_types)
    return min(there_are, settings.gpu_budget or there_are)


def most_instances(settings: SimSettings, model: SimModel) -> int:
    """Instances of a model that may be held at once: what its limit, the GPU budget and its nodes allow."""
    kind = next(kind for kind in settings.gpu_types if model.gpu_type in ("", kind.name))
    fit = kind.nodes * (kind.gpus_per_node // model.profile.gpus)
    return min(fit, most_gpus(settings) // model.profile.gpus, model.max_instances or fit)


def part_of_model(reading: Reading, model: int) -> Reading:
    """The requests of the model with this index, as if there were no other."""
    part = part_of(reading, reading.workload.model == model)
    only = np.zeros(len(part.workload), dtype=np.int16)
    return Reading(dataclasses.replace(part.workload, model=only))


def part_of(reading: Reading, mine: NDArray[np.bool_]) -> Reading:
    """The requests that `mine` marks."""
    whole = reading.workload
    prefix, tenant = whole.prefix, whole.tenant
    if prefix is not None:
        prefix = tuple(entry for entry, keep in zip(prefix, mine, strict=True) if keep)
    if tenant is not None:
        tenant = tuple(name for name, keep in zip(tenant, mine, strict=True) if keep)
    part = Workload(
        whole.arrival_s[mine],
        whole.prompt_tokens[mine],
        whole.output_tokens[mine],
        whole.request_class[mine],
        whole.model[mine],
        whole.deadline_s[mine],
        prefix,
        None if whole.refuse_late is None else whole.refuse_late[mine],
        tenant,
    )
    return Reading(part)


def parameters(scenario: Scenario, policy: PolicyChoice) -> dict[str, Any]:
    """Every parameter of a run, ready for JSON; step tables are named by their profile."""
    made = policy.make()
    parts = _plain(made.parts)
    del parts["about"]
    parts["autoscaler_settings"] = _plain(made.autoscaler_settings)
    if made.migration_thresholds is not None:
        parts["migration_thresholds"] = _plain(made.migration_thresholds)
    return {
        "duration_s": scenario.duration_s,
        "output_drift": scenario.output_drift,
        "policy": parts,
        "settings": _plain(made.settings(scenario.settings)),
        "traffic": [_plain(source) for source in scenario.traffic],
        "backlog": [_plain(source) for source in scenario.backlogs],
        "replay": [_plain(source) for source in scenario.replays],
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name != "step_time_ms"
        }
    if isinstance(value, Mapping):
        return {
            key.name.lower() if isinstance(key, Role) else key: _plain(each) for key, each in value.items()
        }
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value
