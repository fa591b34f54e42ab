import pytest

from chiron.engine import EngineModel, EngineRequest, InvalidLimitError, Speculation, get_profile


def engine_with(draft_tokens, acceptance_rate, **options):
    speculation = Speculation(draft_tokens, acceptance_rate)
    return EngineModel(get_profile("toy").replace(speculation=speculation), **options)


def emitted_per_step(engine):
    counts = []
    while (outcome := engine.step(0.0)) is not None:
        counts.append(outcome.emitted_tokens)
    return counts


def test_average_tokens_follow_the_geometric_series():
    assert Speculation(2, 0.5).tokens_per_step == 1.75  # 1 + 1/2 + 1/4
    assert Speculation(4, 1.0).tokens_per_step == 5.0
    assert Speculation(4, 0.0).tokens_per_step == 1.0


def test_tokens_per_step_vary_around_the_average_and_stop_at_the_last_token():
    engine = engine_with(2, 0.5)
    engine.submit(EngineRequest(1, 10, 10))
    # The prompt's token, then floor(1.75 d) after d decode steps: 1, 3, 5, 7, 8, 10; only 9 are left to emit.
    assert emitted_per_step(engine) == [1, 1, 2, 2, 2, 1, 1]
    assert engine.totals.finished == 1


def test_full_acceptance_emits_draft_plus_one():
    engine = engine_with(3, 1.0)
    engine.submit(EngineRequest(1, 10, 10))
    assert emitted_per_step(engine) == [1, 4, 4, 1]


def test_draft_positions_count_as_tokens_of_the_step_and_of_the_budget():
    engine = engine_with(3, 0.0, step_token_budget=10)
    engine.submit(EngineRequest(1, 4, 5))
    engine.step(0.0)
    engine.submit(EngineRequest(2, 20, 1))
    outcome = engine.step(0.0)
    assert (outcome.decode_tokens, outcome.prefill_tokens) == (4, 6)


def test_run_of_speculative_steps_ends_with_the_finish():
    engine = engine_with(2, 0.5)
    engine.submit(EngineRequest(1, 10, 10))
    engine.step(0.0)
    outcome = engine.advance(0.0)
    assert (outcome.steps, outcome.emissions, outcome.finished) == (6, [(1, 9)], [1])
    assert engine.kv_used_tokens == 0


@pytest.mark.parametrize(("draft", "rate", "field"), [(0, 0.5, "draft_tokens"), (1, 1.1, "acceptance_rate")])
def test_bad_figures_are_refused_by_field(draft, rate, field):
    with pytest.raises(InvalidLimitError, match=field):
        Speculation(draft, rate)


def test_totals_tell_what_was_drafted_and_accepted():
    engine = engine_with(2, 0.5)
    engine.submit(EngineRequest(1, 10, 10))
    engine.step(0.0)
    assert (engine.totals.draft_tokens, engine.totals.accepted_tokens) == (0, 0)
    engine.advance(0.0)
    # Six decode steps with two drafts each: floor(1.75 x 6) = 10 tokens, four more than steps.
    assert (engine.totals.draft_tokens, engine.totals.accepted_tokens) == (12, 4)
    plain = EngineModel(get_profile("toy"))
    plain.submit(EngineRequest(1, 10, 10))
    while plain.step(0.0) is not None:
        pass
    assert (plain.totals.draft_tokens, plain.totals.accepted_tokens) == (0, 0)
