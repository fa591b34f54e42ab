"""Experiments of the evaluation that take a second, and cases that go wrong."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from chiron.sim.paper.case import Case, Figures, Outcome
from chiron.sim.paper.experiment import Experiment, Later, Size, SkippedError
from chiron.sim.paper.sections import Section, row, table
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import Scenario, read_scenario

SCENARIO = read_scenario(Path(__file__).parents[2] / "examples" / "scenarios" / "tiny.toml")


def lasting(duration_s: float) -> Scenario:
    """The tiny scenario, as short as this."""
    return dataclasses.replace(SCENARIO, duration_s=duration_s, backlogs=())


def case(policy: str = "chiron", seed: int = 101, duration_s: float = 20.0, **more: object) -> Case:
    """A case of the experiment `tiny`."""
    labels = {"duration": duration_s}
    return Case("tiny", labels, lasting(duration_s), PolicyChoice(policy, **more), seed)  # type: ignore[arg-type]


def with_model(given: Case, **fields: object) -> Case:
    """The case with fields of its only model changed."""
    (model,) = given.scenario.settings.models
    changed = dataclasses.replace(model, **fields)  # type: ignore[arg-type]
    settings = dataclasses.replace(given.scenario.settings, models=(changed,))
    return dataclasses.replace(given, scenario=dataclasses.replace(given.scenario, settings=settings))


def cramped(policy: str) -> Case:
    """A case that no fleet of its one instance can serve well."""
    return with_model(case(policy, duration_s=5.0), max_instances=1, ttft_slo_s=0.005)


def _cases(size: Size, _traces: Path | None) -> Sequence[Case]:
    return [case(policy, seed) for policy in ("chiron", "llumnix") for seed in size.reported(2, 3)]


def _next(_size: Size, outcomes: Sequence[Outcome]) -> Sequence[Case]:
    """The policy with the better mean throughput once more, on longer traffic."""
    rates = {
        policy: sum(
            each.figures["throughput"]["tokens_per_s"] for each in outcomes if each.case.policy.name == policy
        )
        for policy in ("chiron", "llumnix")
    }
    return [case(max(rates, key=lambda policy: rates[policy]), duration_s=30.0)]


def _tell(outcomes: Sequence[Outcome]) -> Section:
    rows = [row(each.case.key, f"{each.figures['gpu_hours']:.4f}", command=each.command) for each in outcomes]
    return Section("Tiny", ("Told.",), (table("runs", ("case", "GPU-hours"), rows),))


def _skips(_size: Size, _traces: Path | None) -> Sequence[Case]:
    raise SkippedError("nothing was given")


TINY = Experiment("tiny", "Tiny", "That it runs.", _cases, _tell, _next, lambda _size: Later(1))
SKIPPED = Experiment("skipped", "Skipped", "Nothing.", _skips, _tell)


def failing(*cases: Case) -> Experiment:
    """An experiment of these cases."""
    return Experiment("tiny", "Tiny", "What goes wrong.", lambda _size, _traces: cases, _tell)


def killed(_case: Case) -> Figures:
    """A measure whose process dies as for lack of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def leaving(_case: Case) -> Figures:
    """A measure that ends its process."""
    raise SystemExit("enough")


def many(_size: Size, _traces: Path | None) -> Sequence[Case]:
    """More cases than end in a second."""
    return [case(seed=seed, duration_s=60.0) for seed in range(101, 131)]


MANY = Experiment("tiny", "Tiny", "That it can be interrupted.", many, _tell)
