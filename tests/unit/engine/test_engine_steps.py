"""Hand-worked steps: what is scheduled, how long it takes, who emits."""

import pytest

from chiron.engine import Admission, EngineModel, EngineRequest, InvalidLimitError, RequestPhase, get_profile

KV_S = 131_072 / 1.6e12  # seconds to read one KV token of the 8B profile


def engine_8b(**options):
    return EngineModel(get_profile("llama3-8b@a100"), **options)


def run_to_end(engine):
    """Single steps until idle; return (outcomes, time of the last token)."""
    now, outcomes = 0.0, []
    while (outcome := engine.step(now)) is not None:
        now += outcome.duration_s
        outcomes.append(outcome)
    return outcomes, now


def test_idle_engine_takes_no_step():
    assert engine_8b().step(0.0) is None


def test_prompt_then_decode_take_the_table_time_and_the_kv_read_time():
    engine = engine_8b()
    engine.submit(EngineRequest(7, prompt_tokens=128, output_tokens=3))

    first = engine.step(0.0)
    assert first.duration_s == pytest.approx(13.184e-3, rel=1e-12)
    assert first.admitted == [Admission(7, 0)]
    assert first.first_tokens == [7]
    assert first.emissions == [(7, 1)]
    assert (first.prefill_tokens, first.decode_tokens) == (128, 0)

    second = engine.step(first.duration_s)
    # The first output token is written as token 129, then all 129 are read.
    assert second.duration_s == pytest.approx(9.696e-3 + 129 * KV_S, rel=1e-12)
    assert second.emissions == [(7, 1)]
    assert (second.first_tokens, second.finished) == ([], [])

    third = engine.step(1.0)
    assert third.duration_s == pytest.approx(9.696e-3 + 130 * KV_S, rel=1e-12)
    assert third.finished == [7]
    assert engine.step(2.0) is None


def test_time_factor_multiplies_the_whole_step():
    engine = engine_8b()
    engine.submit(EngineRequest(1, 128, 3))
    assert engine.step(0.0, time_factor=2.0).duration_s == pytest.approx(2 * 13.184e-3)
    assert engine.step(1.0, time_factor=0.5).duration_s == pytest.approx((9.696e-3 + 129 * KV_S) / 2)


def test_prompt_is_computed_in_chunks_of_the_budget_and_emits_with_the_last():
    engine = engine_8b(step_token_budget=512)
    engine.submit(EngineRequest(1, 1200, 1))
    outcomes, end = run_to_end(engine)
    assert [outcome.prefill_tokens for outcome in outcomes] == [512, 512, 176]
    assert [outcome.emitted_tokens for outcome in outcomes] == [0, 0, 1]
    assert end == pytest.approx((34.640 + 34.640 + 17.568) / 1e3)


def test_decodes_come_first_and_a_prompt_gets_the_rest_of_the_budget():
    engine = engine_8b(step_token_budget=512)
    for request_id in range(8):
        engine.submit(EngineRequest(request_id, 10, 50))
    engine.step(0.0)
    engine.submit(EngineRequest(100, 600, 5))
    mixed = engine.step(1.0)
    assert (mixed.decode_tokens, mixed.prefill_tokens) == (8, 504)
    # 512 tokens computed; eight decodes of 11 tokens each read their KV.
    assert mixed.duration_s == pytest.approx(34.640e-3 + 8 * 11 * KV_S)
    assert engine.progress(100).phase is RequestPhase.PREFILLING
    assert engine.step(2.0).first_tokens == [100]


def test_prompt_under_way_goes_on_before_anyone_is_admitted():
    engine = engine_8b(step_token_budget=100)
    engine.submit(EngineRequest(1, 150, 2))
    engine.step(0.0)
    engine.submit(EngineRequest(2, 200, 2, priority=-5))
    second = engine.step(1.0)
    assert second.first_tokens == [1]
    assert second.admitted == [Admission(2, 0)]
    assert engine.progress(1).computed_tokens == 150
    assert engine.progress(2).computed_tokens == 50


def test_budget_below_the_running_decodes_holds_back_prefill_only():
    engine = engine_8b()
    for request_id in range(4):
        engine.submit(EngineRequest(request_id, 10, 3))
    engine.step(0.0)
    engine.set_step_token_budget(2)
    engine.submit(EngineRequest(9, 10, 1))
    outcome = engine.step(1.0)
    assert (outcome.decode_tokens, outcome.prefill_tokens, outcome.admitted) == (4, 0, [])
    outcomes, _ = run_to_end(engine)
    assert outcomes[0].finished == [0, 1, 2, 3]
    assert [outcome.prefill_tokens for outcome in outcomes[1:]] == [2, 2, 2, 2, 2]
    assert outcomes[-1].finished == [9]


def test_lower_priority_value_is_admitted_first_and_arrival_breaks_ties():
    engine = engine_8b(batch_size=1)
    for request_id, priority in ((1, 5), (2, 0), (3, 5), (4, -1)):
        engine.submit(EngineRequest(request_id, 10, 1, priority=priority))
    assert engine.waiting_ids() == [4, 2, 1, 3]
    outcomes, _ = run_to_end(engine)
    assert [outcome.finished for outcome in outcomes] == [[4], [2], [1], [3]]


def test_lowering_the_batch_size_drains_and_evicts_nobody():
    engine = engine_8b(batch_size=3)
    for request_id, output in ((1, 2), (2, 3), (3, 4), (4, 1)):
        engine.submit(EngineRequest(request_id, 10, output))
    engine.step(0.0)
    engine.set_batch_size(1)
    assert engine.running == 3
    running, admitted = [], []
    while (outcome := engine.step(1.0)) is not None:
        running.append(engine.running)
        admitted.extend(admission.request_id for admission in outcome.admitted)
    assert running == [2, 1, 0, 0]  # 1, 2 and 3 end one a step; only then is 4 admitted
    assert admitted == [4]
    assert engine.totals.preemptions == 0


def test_raising_the_batch_size_admits_in_the_next_step():
    engine = engine_8b(batch_size=1)
    engine.submit(EngineRequest(1, 10, 9))
    engine.submit(EngineRequest(2, 10, 9))
    engine.step(0.0)
    assert engine.step(1.0).admitted == []
    engine.set_batch_size(2)
    assert engine.step(2.0).admitted == [Admission(2, 0)]


@pytest.mark.parametrize("value", [0, -1])
def test_limits_below_one_are_refused_by_name(value):
    engine = engine_8b()
    with pytest.raises(InvalidLimitError, match="batch_size"):
        engine.set_batch_size(value)
    with pytest.raises(InvalidLimitError, match="step_token_budget"):
        engine.set_step_token_budget(value)
    assert (engine.batch_size, engine.step_token_budget) == (256, 2048)


def test_emissions_can_be_left_out_and_counts_stay():
    engine = engine_8b(report_emissions=False)
    engine.submit(EngineRequest(1, 10, 5))
    engine.step(0.0)
    outcome = engine.step(1.0)
    assert (outcome.emissions, outcome.emitted_tokens) == ([], 1)
    assert engine.progress(1).emitted_tokens == 2


def test_decode_run_ends_with_the_first_finish():
    engine = engine_8b()
    engine.submit(EngineRequest(1, 100, 11))
    engine.submit(EngineRequest(2, 100, 30))
    assert engine.decode_run() is None  # the next step computes prompts
    engine.step(0.0)
    ahead = engine.decode_run()
    assert ahead.steps == 10
    # Two tokens a step; the contexts read are 101 to 110, twice each.
    assert ahead.duration_s == pytest.approx(10 * 9.792e-3 + 2 * sum(range(101, 111)) * KV_S)
    outcome = engine.advance(1.0)
    assert (outcome.steps, outcome.duration_s) == (10, ahead.duration_s)
    assert outcome.emissions == [(1, 10), (2, 10)]
    assert outcome.finished == [1]


def test_run_takes_the_steps_that_begin_before_the_given_instant():
    engine = engine_8b()
    engine.submit(EngineRequest(1, 100, 100))
    engine.step(0.0)
    # Steps last 9.70 ms: those at 0, 9.7, 19.4 and 29.1 ms begin before 30 ms.
    outcome = engine.advance(5.0, until=5.030)
    assert outcome.steps == 4
    assert outcome.duration_s == pytest.approx(4 * 9.696e-3 + sum(range(101, 105)) * KV_S)


def test_run_goes_on_while_the_queue_cannot_move():
    engine = engine_8b(batch_size=1)
    engine.submit(EngineRequest(1, 100, 100))
    engine.submit(EngineRequest(2, 100, 100))
    engine.step(0.0)
    assert engine.advance(1.0).steps == 99
    assert engine.advance(2.0).admitted == [Admission(2, 0)]


@pytest.mark.parametrize(
    ("field", "options"),
    [("until", {"until": 1.0}), ("max_steps", {"max_steps": 0}), ("time_factor", {"time_factor": 0.0})],
)
def test_advance_refuses_bad_bounds_by_name(field, options):
    with pytest.raises(InvalidLimitError, match=field):
        engine_8b().advance(1.0, **options)
