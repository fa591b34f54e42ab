import pytest

from chiron.engine import (
    EngineModel,
    EngineRequest,
    EngineState,
    EngineStateError,
    InvalidLimitError,
    get_profile,
)


def toy_engine():
    return EngineModel(get_profile("toy"))  # loads in 0.3 s, wakes in 0.05 s (level 1) or 0.15 s (level 2)


def test_new_engine_is_ready_at_any_time():
    assert toy_engine().state(-1e9) is EngineState.READY


def test_loading_engine_queues_requests_and_steps_once_ready():
    engine = toy_engine()
    assert engine.load(10.0) == pytest.approx(10.3)
    engine.submit(EngineRequest(1, 10, 1))
    assert engine.state(10.2) is EngineState.LOADING
    with pytest.raises(EngineStateError, match="loading"):
        engine.step(10.2)
    assert engine.step(engine.ready_at).finished == [1]


@pytest.mark.parametrize(("level", "wake_s"), [(1, 0.05), (2, 0.15)])
def test_waking_takes_the_time_of_the_sleep_level(level, wake_s):
    engine = toy_engine()
    engine.sleep(1.0, level)
    assert engine.state(100.0) is EngineState.ASLEEP
    ready_at = engine.wake(100.0)
    assert ready_at == pytest.approx(100.0 + wake_s)
    assert engine.state(100.0) is EngineState.WAKING
    assert engine.state(ready_at) is EngineState.READY
    assert engine.step(ready_at) is None


def test_sleep_is_refused_while_requests_run_or_wait():
    engine = toy_engine()
    engine.submit(EngineRequest(1, 10, 3))
    with pytest.raises(EngineStateError, match="0 requests run and 1 wait"):
        engine.sleep(0.0)
    engine.step(0.0)
    with pytest.raises(EngineStateError, match="1 requests run and 0 wait"):
        engine.sleep(0.0)
    engine.abort(1)
    engine.sleep(0.0)


def test_asleep_engine_refuses_requests_and_steps():
    engine = toy_engine()
    engine.sleep(0.0)
    with pytest.raises(EngineStateError, match="asleep"):
        engine.submit(EngineRequest(1, 10, 1))
    with pytest.raises(EngineStateError, match="asleep"):
        engine.step(5.0)


def test_sleep_loses_the_prefix_cache():
    engine = toy_engine()
    engine.submit(EngineRequest(1, 32, 1, prefix_hashes=("a", "b")))
    engine.step(0.0)
    assert engine.prefix_cache_tokens == 32
    engine.sleep(1.0)
    assert engine.prefix_cache_tokens == 0
    assert engine.kv_free_tokens == engine.kv_total_tokens


def test_wake_and_sleep_out_of_turn_are_refused():
    engine = toy_engine()
    with pytest.raises(EngineStateError, match="not asleep"):
        engine.wake(0.0)
    with pytest.raises(InvalidLimitError, match="level"):
        engine.sleep(0.0, 3)
    engine.load(0.0)
    with pytest.raises(EngineStateError, match="loading"):
        engine.sleep(0.1)
    with pytest.raises(EngineStateError, match="not asleep"):
        engine.wake(0.2)
