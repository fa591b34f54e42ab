"""The robustness table: points of attainment lost, and GPU-hours over the bound, against the plain run."""

from __future__ import annotations

from typing import Any

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Size
from chiron.sim.paper.experiments import robustness
from chiron.sim.policies import PolicyChoice
from chiron.sim.variations import ROBUSTNESS

SCENARIO = robustness.scenarios(quick=True)["W_A"]


def outcome(variation: str, attained: float, gpu_hours: float, ratio: float) -> Outcome:
    labels = {"workload": "W_A", "variation": variation}
    figures: dict[str, Any] = {
        "slo_attainment": {"all": attained},
        "gpu_hours": gpu_hours,
        "oracle_lb": {"ratio": ratio},
    }
    return Outcome(Case(robustness.NAME, labels, SCENARIO, PolicyChoice(), 101), figures)


def test_every_variation_runs_beside_the_plain_scenario() -> None:
    cases = robustness.cases(Size.QUICK, None)

    assert {str(case.labels["variation"]) for case in cases} == {robustness.PLAIN, *ROBUSTNESS}
    assert len({case.scenario.name for case in cases}) == len(cases)


def test_what_is_lost_is_measured_against_the_plain_run() -> None:
    section = robustness.tell(
        [
            outcome(robustness.PLAIN, 1.0, 10.0, 1.10),
            outcome("steps-slower", 0.985, 13.0, 1.21),
            outcome("telemetry-late", 0.97, 10.0, 1.10),
            outcome("loads-slower", 1.0, 12.0, 1.32),
        ]
    )

    assert [(each.found, each.verdict) for each in section.findings] == [
        ("-1.50 points, +10.0%", "met"),
        ("-3.00 points, +0.0%", "not met"),
        ("+0.00 points, +20.0%", "not met"),
    ]
    assert "+30.0%" in section.findings[0].why
    assert [each.cells[4] for each in section.tables[0].rows] == ["+0.00", "-1.50", "-3.00", "+0.00"]
