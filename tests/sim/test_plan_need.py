"""How many GPUs a workload needs, where that can be calculated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from chiron.config import ConfigError
from chiron.sim.planning.crew import Crew
from chiron.sim.planning.need import Terms, held_fixed
from chiron.sim.planning.plan import Plan, Question, plan
from chiron.sim.planning.points import Curve, Point
from chiron.sim.planning.search import Found
from chiron.sim.planning.shown import plan_json
from chiron.sim.planning.source import Slo, Source
from chiron.sim.planning.told import sentences, why
from chiron.sim.policies import PolicyChoice
from chiron.sim.scenario import scenario_from
from tests.support.clockwork import clockwork_document


def clockwork(rate_per_s: float, **given: Any) -> Source:
    return Source(scenario_from(clockwork_document(rate_per_s, **given), Path("clockwork.toml")))


def planned(source: Source, **question: Any) -> Plan:
    terms = question.pop("terms", Terms(seeds=(1, 2)))
    with Crew(jobs=1) as crew:
        return plan(source, PolicyChoice(), Question(terms, **question), crew)


def test_as_many_gpus_are_needed_as_requests_are_served_at_once() -> None:
    # 12 requests a second for 0.2 s each are 2.4 at once; two engines are behind by a fifth of a request more
    # with each that comes, and so beyond the SLO after 2 s or so.
    found = planned(clockwork(12))

    assert found.need.gpus == 3
    assert found.fixed.gpus == 3
    assert found.fixed.instances == {"m": 3}
    assert found.fixed.price_per_hour == pytest.approx(3 * 2.0)
    assert found.need.curve.points[2].mean("interactive") < 0.5
    assert found.need.found.upsets == ()


def test_growth_multiplies_the_need_and_tells_what_the_first_answer_would_do() -> None:
    found = planned(clockwork(12), growth=(1.0, 2.0))

    # 4.8 at once.
    assert [grown.need.gpus for grown in found.growth] == [3, 5]
    assert [grown.fixed.gpus for grown in found.growth] == [3, 5]
    assert found.growth[1].need.curve.points[3].attains is False
    (told,) = [text for text in sentences(found) if text.startswith("At 2 times the load")]
    assert "at least 5 GPUs" in told
    assert "; 3 would serve " in told
    assert told.endswith(" The smallest fixed fleet that attains holds 5.")


def test_an_slo_that_no_number_of_gpus_keeps_is_told_with_the_best_and_the_reason() -> None:
    found = planned(clockwork(12), slos=(Slo(), Slo(itl_s=0.002)))

    impossible = found.slos[1]
    assert impossible.need.gpus is None
    assert impossible.fixed.gpus is None
    told = sentences(found)[-1]
    assert told.startswith("With ITL 2 ms: no number up to 8 attains; the best is ")
    assert " with 0.0 % of the interactive requests. With 8, 100 % of the " in told
    assert "took more than 2 ms a token" in told
    assert told.endswith(" No fixed fleet does.")


def test_the_answer_is_told_first_and_why_one_less_is_too_few() -> None:
    answer, below, fixed = sentences(planned(clockwork(12)))

    assert answer.startswith("At least 3 GPUs: 100 % of the interactive requests attained, with ")
    assert below.startswith("With 2: ")
    assert "had no first token within 300 ms" in below
    assert "all 2 were held for 100 % of the time" in below
    assert fixed.startswith("The smallest fixed fleet that attains holds 3 GPUs, 6.00 an hour; chiron holds ")


def test_more_gpus_than_the_scenario_has_are_tried_when_asked_for() -> None:
    few = clockwork(12, initial={"mixed": 1}, nodes=2)

    assert planned(few, terms=Terms(seeds=(1,))).fixed.gpus is None
    found = planned(few, terms=Terms(seeds=(1,), most_gpus=4))
    assert found.fixed.gpus == 3
    assert found.need.most_gpus == 4


def test_a_goal_counts_in_place_of_99_percent() -> None:
    # With two engines requests come too late from about the 30th of 240 on.
    assert planned(clockwork(12), terms=Terms(seeds=(1,), goal=0.05)).need.gpus == 2


def test_budgets_below_the_first_fleet_begin_with_fewer_instances() -> None:
    found = planned(clockwork(12, initial={"mixed": 8}), budgets=(1,))

    assert found.need.curve.points[1].attempts[0].gpus_peak == 1


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_growth_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(ConfigError, match="growth: must be a number above 0"):
        clockwork(12).grown(factor)


def test_growth_is_of_rates_backlogs_and_traces_alike(tmp_path: Path) -> None:
    rows = "".join(f"2023-11-16 18:15:{second:02},100,20\n" for second in range(60))
    (tmp_path / "t.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}", encoding="utf-8")
    mixed = clockwork_document(10)
    mixed["backlog"] = [{"requests": 50, "deadline_in_s": 60}]
    mixed["replay"] = [{"file": "t.csv", "format": "azure"}]
    source = Source(scenario_from(mixed, tmp_path / "s.toml"))

    def requests(of: Source) -> int:
        return len(of.at(1)[1].workload)

    assert requests(source) == 200 + 50 + 60
    assert requests(source.grown(2.0)) == pytest.approx(400 + 100 + 120, abs=1)
    assert requests(source.grown(0.5)) == pytest.approx(100 + 25 + 30, abs=10)


def test_recorded_requests_grow_over_the_same_time_and_are_the_same_on_every_seed() -> None:
    scenario, reading = clockwork(10).at(1)
    recorded = Source(scenario, reading)

    assert recorded.at(1)[1] is recorded.at(2)[1]
    grown = recorded.grown(3.0).at(5)[1].workload
    assert len(grown) == 3 * len(reading.workload)
    assert grown.arrival_s[-1] <= reading.workload.arrival_s[-1]
    # The first of each three stays where it was, and the others are about there.
    assert set(reading.workload.arrival_s) <= set(grown.arrival_s)
    assert grown.arrival_s.mean() == pytest.approx(reading.workload.arrival_s.mean(), rel=0.15)


def test_a_curve_that_does_not_only_rise_is_told_with_the_size_from_which_it_does() -> None:
    found = planned(clockwork(12), terms=Terms(seeds=(1,)), budgets=(3, 4, 5, 6))
    points = dict(found.need.curve.points)
    # As if 4 GPUs had missed, which 3 and 5 do not.
    (attempt,) = points[4].attempts
    points[4] = Point(4, (dataclasses.replace(attempt, attains=False, interactive=0.97),))
    tried = {size: point.attains for size, point in points.items()}
    need = dataclasses.replace(found.need, curve=Curve(points), found=Found(3, tried))

    told = sentences(dataclasses.replace(found, need=need))

    assert told[2] == (
        "More is not always better here: 3 attain, but not 4 (97.0 % of the interactive requests). "
        "From 5 on all that were tried attain."
    )
    assert plan_json(dataclasses.replace(found, need=need))["monotone"] is False


def test_a_policy_that_scales_nothing_is_not_planned_for() -> None:
    with Crew(jobs=1) as crew, pytest.raises(ConfigError, match="policy 'fixed' scales nothing"):
        plan(clockwork(12), PolicyChoice("fixed"), Question(Terms(seeds=(1,))), crew)


def test_the_fixed_fleet_has_the_parts_of_the_policy_and_none_of_the_settings_of_its_autoscaler() -> None:
    set_up = PolicyChoice("llumnix", parameters={"batch_size": 8, "out_below": 5})

    held = held_fixed(set_up)

    assert held.parts.autoscaler == "fixed"
    assert (held.parts.pinned, held.parts.dispatcher) == (True, "llumnix")
    assert dict(held.parameters) == {"batch_size": 8}
    held.make()


def test_a_backlog_that_would_be_late_needs_more_although_interactive_requests_do_not() -> None:
    document = clockwork_document(12)
    work = {"lengths": "lognormal", "prompt_mean": 1, "output_mean": 100, "sigma": 0}
    # 60 times 0.2 s within 4 s are 3 more at once.
    document["backlog"] = [{"requests": 60, "arrive_s": 5, "deadline_in_s": 4, **work}]

    found = planned(
        Source(scenario_from(document, Path("backlog.toml"))), terms=Terms(seeds=(1,)), budgets=(4,)
    )

    assert found.fixed.gpus is not None
    assert 2.4 + 3 < found.fixed.gpus <= 8
    four = found.need.curve.points[4]
    assert four.mean("interactive") >= 0.99
    assert not four.attains
    assert "of the batch requests missed their deadline" in why(four, found.source.scenario.settings)


def test_it_has_to_attain_on_every_seed_as_a_budget_and_as_a_fixed_fleet() -> None:
    found = planned(clockwork(12))

    (fixed,) = found.fixed.points.values()
    assert [attempt.seed for attempt in fixed.attempts] == [1, 2]
    good, other = fixed.attempts
    assert fixed.attains
    assert not Point(3, (good, dataclasses.replace(other, attains=False))).attains
