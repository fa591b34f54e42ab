import pytest

from chiron.engine import Admission, EngineModel, EngineRequest, get_profile
from chiron.engine.kv import BlockPool


def tiny_engine(blocks=16, **options):
    """Blocks of 4 tokens."""
    profile = get_profile("toy").replace(block_size=4, kv_capacity_tokens=4 * blocks)
    return EngineModel(profile, **options)


def finish_all(engine):
    admitted = []
    while (outcome := engine.step(0.0)) is not None:
        admitted += outcome.admitted
    return admitted


def test_second_request_skips_the_prefix_that_the_first_computed():
    engine = tiny_engine()
    engine.submit(EngineRequest(1, 10, 1, prefix_hashes=("a", "b")))
    finish_all(engine)
    engine.submit(EngineRequest(2, 14, 2, prefix_hashes=("a", "b", "c")))
    outcome = engine.step(0.0)
    assert outcome.admitted == [Admission(2, 8)]
    assert outcome.prefill_tokens == 6
    assert engine.progress(2).cached_tokens == 8
    assert engine.totals.cached_tokens == 8


def test_last_prompt_token_is_always_computed():
    engine = tiny_engine()
    for request_id in (1, 2):
        engine.submit(EngineRequest(request_id, 8, 1, prefix_hashes=("a", "b")))
        admitted = finish_all(engine)
    assert admitted == [Admission(2, 4)]  # not 8: the second block holds the last token


def test_hits_stop_at_the_first_block_that_is_not_cached():
    engine = tiny_engine()
    engine.submit(EngineRequest(1, 13, 1, prefix_hashes=("a", "b", "c")))
    finish_all(engine)
    engine.submit(EngineRequest(2, 13, 1, prefix_hashes=("a", "x", "c")))
    assert finish_all(engine) == [Admission(2, 4)]


def test_running_requests_share_their_prefix_blocks():
    engine = tiny_engine()
    engine.submit(EngineRequest(1, 9, 5, prefix_hashes=("a", "b")))
    engine.step(0.0)
    assert engine.kv_used_tokens == 12
    engine.submit(EngineRequest(2, 9, 5, prefix_hashes=("a", "b")))
    engine.step(0.0)
    assert engine.kv_used_tokens == 16  # the last block alone is its own
    engine.abort(1)
    assert engine.kv_used_tokens == 12
    finish_all(engine)
    assert engine.kv_free_tokens == engine.kv_total_tokens
    assert engine.prefix_cache_tokens == 8


def test_unused_cached_blocks_make_way_when_space_is_needed():
    engine = tiny_engine(blocks=4)
    engine.submit(EngineRequest(1, 9, 1, prefix_hashes=("a", "b")))
    finish_all(engine)
    assert engine.kv_free_tokens == 16
    engine.submit(EngineRequest(2, 12, 1))  # three blocks: two free ones and the end of the cached prefix
    finish_all(engine)
    engine.submit(EngineRequest(3, 9, 1, prefix_hashes=("a", "b")))
    assert finish_all(engine) == [Admission(3, 4)]


def test_preempted_request_finds_its_prompt_in_the_cache():
    engine = tiny_engine()
    engine.submit(EngineRequest(1, 9, 6, prefix_hashes=("a", "b")))
    engine.step(0.0)
    engine.step(0.0)
    engine.preempt(1)
    outcome = engine.step(0.0)
    assert outcome.admitted == [Admission(1, 8)]
    assert outcome.prefill_tokens == 9 + 2 - 8
    assert engine.progress(1).cached_tokens == 0  # as at its first admission


def test_same_prefix_computed_twice_at_once_is_cached_once_and_not_leaked():
    engine = tiny_engine(step_token_budget=4)
    engine.submit(EngineRequest(1, 9, 3, prefix_hashes=("a", "b")))
    engine.step(0.0)
    engine.set_step_token_budget(2048)
    engine.submit(EngineRequest(2, 9, 3, prefix_hashes=("a", "b")))
    finish_all(engine)
    assert engine.prefix_cache_tokens == 8
    assert engine.kv_free_tokens == engine.kv_total_tokens


def test_pool_evicts_the_least_recently_used_prefix_from_its_end():
    pool = BlockPool(4)
    pool.take(4)
    for block_hash in ("a", "b", "x", "y"):
        assert pool.publish(block_hash)
    pool.release(["a", "b"])
    pool.release(["x", "y"])
    pool.take(1)
    assert pool.match(("a", "b"), 2) == (1, 1)
    pool.acquire(("a",))
    pool.take(2)
    assert pool.match(("x", "y"), 2) == (0, 0)
    assert pool.available == 0
    with pytest.raises(ValueError, match="1 KV blocks asked for, 0 available"):
        pool.take(1)


def test_pool_publishes_a_content_once():
    pool = BlockPool(2)
    pool.take(2)
    assert pool.publish("a")
    assert not pool.publish("a")
