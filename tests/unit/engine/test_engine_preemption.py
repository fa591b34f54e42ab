"""KV blocks run out, or a caller takes a slot back: who waits, what is kept, what is computed again."""

import pytest

from chiron.engine import (
    Admission,
    EngineModel,
    EngineRequest,
    RequestPhase,
    UnknownRequestError,
    get_profile,
)


def tiny_engine(blocks, **options):
    """Blocks of 4 tokens."""
    profile = get_profile("toy").replace(block_size=4, kv_capacity_tokens=4 * blocks)
    return EngineModel(profile, **options)


def test_kv_exhaustion_preempts_the_latest_and_keeps_its_tokens():
    engine = tiny_engine(blocks=4)
    engine.submit(EngineRequest(1, 4, 8))
    engine.submit(EngineRequest(2, 4, 8))
    for _ in range(5):  # one block of prompt each, then one block for tokens 5 to 8 each
        assert engine.step(0.0).preempted == []
    assert engine.kv_free_tokens == 0

    sixth = engine.step(0.0)
    assert sixth.preempted == [2]
    assert sixth.emissions == [(1, 1)]
    waiting = engine.progress(2)
    assert (waiting.phase, waiting.emitted_tokens, waiting.computed_tokens) == (RequestPhase.WAITING, 5, 0)

    # 2 now needs three blocks for 4 + 5 tokens; one is free until 1 has ended.
    seventh, eighth = engine.step(0.0), engine.step(0.0)
    assert (seventh.admitted, eighth.admitted) == ([], [])
    assert eighth.finished == [1]
    ninth = engine.step(0.0)
    assert ninth.admitted == [Admission(2, 0)]
    assert ninth.prefill_tokens == 9
    assert ninth.emissions == [(2, 1)]
    assert ninth.first_tokens == []
    assert [engine.step(0.0).finished, engine.step(0.0).finished] == [[], [2]]
    assert engine.kv_free_tokens == engine.kv_total_tokens
    assert engine.totals.preemptions == 1


def test_kv_exhaustion_preempts_the_least_urgent_even_if_it_came_first():
    engine = tiny_engine(blocks=4)
    engine.submit(EngineRequest(1, 4, 8, priority=1))
    engine.submit(EngineRequest(2, 4, 8, priority=0))
    preempted = [engine.step(0.0).preempted for _ in range(6)]
    assert preempted[-1] == [1]


def test_waiting_urgent_request_preempts_nobody():
    engine = tiny_engine(blocks=4)
    engine.submit(EngineRequest(1, 11, 4, priority=9))
    engine.step(0.0)
    engine.submit(EngineRequest(2, 8, 1, priority=0))
    outcome = engine.step(0.0)
    assert (outcome.preempted, outcome.admitted) == ([], [])


def test_prompt_under_way_takes_blocks_from_a_less_urgent_decode():
    engine = tiny_engine(blocks=4, step_token_budget=5)
    engine.submit(EngineRequest(1, 3, 8, priority=9))
    engine.step(0.0)  # holds one block
    engine.submit(EngineRequest(2, 12, 1, priority=0))
    for _ in range(2):  # four tokens of 2 a step; 1 grows to two blocks, and none is left
        outcome = engine.step(0.0)
        assert (outcome.prefill_tokens, outcome.preempted) == (4, [])
    assert engine.kv_free_tokens == 0
    third = engine.step(0.0)
    assert third.preempted == [1]
    assert third.finished == [2]
    assert engine.progress(1).emitted_tokens == 3


def test_head_of_the_queue_is_not_overtaken_when_it_lacks_blocks():
    engine = tiny_engine(blocks=4)
    engine.submit(EngineRequest(1, 8, 4))
    engine.step(0.0)
    engine.submit(EngineRequest(2, 12, 1))  # needs three blocks, two are free
    engine.submit(EngineRequest(3, 4, 1))  # would fit
    assert engine.step(0.0).admitted == []


def test_forced_preemption_gives_the_slot_to_the_more_urgent():
    engine = tiny_engine(blocks=16, batch_size=1)
    engine.submit(EngineRequest(1, 4, 6, priority=10))
    for _ in range(3):
        engine.step(0.0)
    engine.submit(EngineRequest(2, 4, 1, priority=0))
    assert engine.preempt(1) is True
    assert engine.preempt(1) is False  # waits already
    assert engine.step(0.0).finished == [2]
    again = engine.step(0.0)
    assert again.prefill_tokens == 4 + 3
    assert again.emissions == [(1, 1)]
    progress = engine.progress(1)
    assert (progress.emitted_tokens, progress.remaining_tokens, progress.preemptions) == (4, 2, 1)


def test_preempted_request_returns_to_its_place_in_the_queue():
    engine = tiny_engine(blocks=16, batch_size=1)
    for request_id in (1, 2, 3):
        engine.submit(EngineRequest(request_id, 4, 6))
    engine.step(0.0)
    engine.preempt(1)
    assert engine.waiting_ids() == [1, 2, 3]


def test_forced_preemption_in_the_middle_of_a_prompt_starts_it_over():
    engine = tiny_engine(blocks=16, step_token_budget=6)
    engine.submit(EngineRequest(1, 10, 1))
    engine.step(0.0)
    engine.preempt(1)
    assert engine.kv_used_tokens == 0
    assert [engine.step(0.0).prefill_tokens, engine.step(0.0).prefill_tokens] == [6, 4]


def test_preempting_an_unknown_request_is_a_typed_error():
    with pytest.raises(UnknownRequestError, match="request 5 is neither waiting nor running"):
        tiny_engine(blocks=4).preempt(5)
