"""Sweeps of rates and backlogs, traces and the second table: who runs where, and what is shown of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chiron.sim.paper.case import Case, Outcome
from chiron.sim.paper.experiment import Experiment, Size, SkippedError
from chiron.sim.paper.experiments.rates_w_a import RATES_W_A, SWEEPS
from chiron.sim.paper.experiments.rates_w_b import RATES_W_B
from chiron.sim.paper.experiments.second_table import SECOND_TABLE, policies
from chiron.sim.paper.experiments.traces import TRACES
from chiron.sim.paper.goal_rows import CODE, CONVERSATIONS
from chiron.sim.policies import POLICIES
from tests.support.paper_figures import figures


def outcomes(experiment: Experiment, traces: Path | None = None, size: Size = Size.QUICK) -> list[Outcome]:
    """As if every case had run."""
    return [
        Outcome(case, figures(1.0 + place, attains=place % 2 == 0), f"again {case.key}")
        for place, case in enumerate(experiment.cases(size, traces))
    ]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    for name in (CONVERSATIONS, CODE):
        (tmp_path / name).touch()
    return tmp_path


def mixes(cases: list[Case]) -> set[str]:
    return {str(case.labels["mix"]) for case in cases}


def test_rates_are_swept_for_each_model_and_for_both_beyond_what_the_cluster_serves() -> None:
    cases = list(RATES_W_A.cases(Size.FULL, None))

    assert mixes(cases) >= {"8b", "70b", "both"}
    for case in cases:
        settings = case.scenario.settings
        held = sum(sum(model.initial.values()) * model.profile.gpus for model in settings.models)
        assert held <= settings.gpu_budget == SWEEPS[str(case.labels["mix"])].gpu_budget
        load_s = max(model.load_s for model in settings.models)
        assert case.scenario.duration_s - settings.warmup_s >= 20 * load_s


def test_a_backlog_is_due_in_an_hour_of_an_hour_and_a_half() -> None:
    for case in RATES_W_B.cases(Size.FULL, None):
        assert {each.deadline_in_s for each in case.scenario.backlogs} == {3600.0}
        assert case.scenario.duration_s == 5400.0


@pytest.mark.parametrize("experiment", [RATES_W_A, RATES_W_B], ids=lambda each: each.name)
def test_a_sweep_has_a_row_for_each_run_and_a_line_for_each_policy(experiment: Experiment) -> None:
    found = outcomes(experiment)

    section = experiment.tell(found)

    assert sum(len(table.rows) for table in section.tables) == len(found)
    assert [row.command for table in section.tables for row in table.rows] == [each.command for each in found]
    assert len(section.plots) == 3 * len(section.tables)
    for plot in section.plots:
        assert {each.name for each in plot.series} == {each.case.policy.label for each in found}


def test_without_their_folder_traces_are_skipped_by_name(tmp_path: Path) -> None:
    with pytest.raises(SkippedError, match=f"needs --traces, a folder with {CONVERSATIONS}"):
        TRACES.cases(Size.QUICK, None)
    with pytest.raises(SkippedError, match=f"has no {CONVERSATIONS}"):
        TRACES.cases(Size.QUICK, tmp_path)


def test_traces_are_shown_one_by_one(traces: Path) -> None:
    section = TRACES.tell(outcomes(TRACES, traces))

    assert [table.caption for table in section.tables] == ["conversations", "code"]


def test_each_scaling_stands_beside_itself_over_our_queues() -> None:
    names = policies()

    assert set(names) <= set(POLICIES)
    for name in ("llumnix", "utilization", "queue-length", "in-flight", "dynamo-like"):
        assert names.index(f"{name}+preempting") == names.index(name) + 1
    (table,) = SECOND_TABLE.tell(outcomes(SECOND_TABLE)).tables
    assert len(table.rows) == len(SECOND_TABLE.cases(Size.QUICK, None))
