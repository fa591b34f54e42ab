import pytest

from chiron.engine import (
    ContextExceededError,
    DuplicateRequestError,
    EngineModel,
    EngineRequest,
    InvalidRequestError,
    KvCapacityExceededError,
    RequestPhase,
    UnknownRequestError,
    get_profile,
)


def toy_engine(**overrides):
    return EngineModel(get_profile("toy").replace(**overrides))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("prompt_tokens", {"prompt_tokens": 0}),
        ("prompt_tokens", {"prompt_tokens": -3}),
        ("output_tokens", {"output_tokens": 0}),
        ("resumed_tokens", {"resumed_tokens": -1}),
        ("resumed_tokens", {"resumed_tokens": 5}),
    ],
)
def test_out_of_range_values_are_refused_by_field(field, values):
    with pytest.raises(InvalidRequestError) as caught:
        EngineRequest(**({"request_id": 1, "prompt_tokens": 10, "output_tokens": 5} | values))
    assert caught.value.field == field


def test_request_longer_than_the_context_names_both_lengths():
    engine = toy_engine(max_context_tokens=100)
    engine.submit(EngineRequest(1, 90, 10))
    with pytest.raises(ContextExceededError) as caught:
        engine.submit(EngineRequest(2, 91, 10))
    assert (caught.value.tokens, caught.value.limit_tokens) == (101, 100)
    assert "101" in str(caught.value)
    assert "100" in str(caught.value)
    assert 2 not in engine


def test_request_that_never_fits_the_kv_cache_names_both_figures():
    engine = toy_engine(kv_capacity_tokens=50)  # three blocks of 16
    engine.submit(EngineRequest(1, 40, 8))
    with pytest.raises(KvCapacityExceededError, match="49 tokens of KV cache, the engine has 48"):
        engine.submit(EngineRequest(2, 41, 8))


def test_request_that_just_fits_the_kv_cache_runs_to_its_end():
    engine = toy_engine(kv_capacity_tokens=48)
    engine.submit(EngineRequest(1, 40, 8))
    while engine.step(0.0) is not None:
        pass
    assert engine.totals.finished == 1
    assert engine.totals.preemptions == 0


def test_id_is_free_again_once_its_request_has_ended():
    engine = toy_engine()
    engine.submit(EngineRequest(1, 10, 1))
    with pytest.raises(DuplicateRequestError, match="1 is already waiting or running"):
        engine.submit(EngineRequest(1, 10, 1))
    engine.step(0.0)
    engine.submit(EngineRequest(1, 10, 1))
    assert engine.waiting == 1


def test_more_prefix_hashes_than_full_blocks_are_refused():
    engine = toy_engine()
    with pytest.raises(InvalidRequestError, match="prefix_hashes: 2 given for 1 full prompt blocks"):
        engine.submit(EngineRequest(1, 31, 1, prefix_hashes=("a", "b")))


def test_resumed_tokens_are_computed_and_not_emitted_again():
    engine = toy_engine()
    engine.submit(EngineRequest(1, 10, 5, resumed_tokens=3))
    first = engine.step(0.0)
    assert first.prefill_tokens == 13
    assert engine.step(0.0).finished == [1]
    assert engine.totals.emitted_tokens == 2


def test_abort_frees_the_slot_and_the_blocks_and_tells_the_progress():
    engine = toy_engine()
    engine.submit(EngineRequest(1, 20, 10))
    engine.step(0.0)
    engine.step(0.0)
    ended = engine.abort(1)
    assert (ended.phase, ended.emitted_tokens, ended.remaining_tokens) == (RequestPhase.ENDED, 2, 8)
    assert (engine.running, engine.kv_used_tokens) == (0, 0)
    assert engine.step(0.0) is None
    with pytest.raises(UnknownRequestError):
        engine.abort(1)


def test_abort_in_the_queue_leaves_the_others_in_order():
    engine = EngineModel(get_profile("toy"), batch_size=1)
    for request_id in range(200):
        engine.submit(EngineRequest(request_id, 4, 1))
    for request_id in range(0, 200, 2):
        engine.abort(request_id)
    assert engine.waiting == 100
    order = []
    while (outcome := engine.step(0.0)) is not None:
        order += outcome.finished
    assert order == list(range(1, 200, 2))


def test_progress_of_an_unknown_request_is_a_typed_error():
    with pytest.raises(UnknownRequestError, match="request 3"):
        toy_engine().progress(3)


def test_a_request_without_an_object_is_refused_for_the_same_reasons():
    engine = toy_engine(max_context_tokens=100, kv_capacity_tokens=64)
    engine.submit_plain(1, 10, 5, 0, 2)
    assert engine.progress(1).remaining_tokens == 3
    for arguments, error in (
        ((1, 10, 5, 0, 0), DuplicateRequestError),
        ((2, 91, 10, 0, 0), ContextExceededError),
        ((2, 60, 5, 0, 0), KvCapacityExceededError),
    ):
        with pytest.raises(error):
            engine.submit_plain(*arguments)
    assert engine.waiting_ids() == [1]
