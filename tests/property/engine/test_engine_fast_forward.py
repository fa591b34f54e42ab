"""A run of decode steps taken at once equals the same steps taken one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.engine import EngineModel, EngineRequest, EngineStateError, Speculation, get_profile

PROFILE = get_profile("toy").replace(
    block_size=4, kv_capacity_tokens=4 * 30, max_context_tokens=100, kv_bytes_per_token=10**8
)

requests = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2), st.booleans()),
    min_size=1,
    max_size=12,
)
speculations = st.none() | st.builds(Speculation, st.integers(1, 4), st.floats(0, 1))


def make_engine(population, batch_size, budget, speculation, report=True):
    profile = PROFILE.replace(speculation=speculation)
    engine = EngineModel(profile, batch_size=batch_size, step_token_budget=budget, report_emissions=report)
    for request_id, (prompt, output, priority, shared) in enumerate(population):
        hashes = tuple(f"shared-{i}" for i in range(prompt // 4)) if shared else ()
        engine.submit(EngineRequest(request_id, prompt, output, priority, prefix_hashes=hashes))
    return engine


def snapshot(engine):
    ids = [*engine.running_ids(), *engine.waiting_ids()]
    return (
        engine.totals,
        engine.kv_free_tokens,
        engine.prefix_cache_tokens,
        [engine.progress(request_id) for request_id in ids],
    )


@given(requests, st.integers(1, 8), st.integers(1, 60), speculations, st.none() | st.integers(1, 9))
def test_advance_equals_single_steps(population, batch_size, budget, speculation, max_steps):
    fast = make_engine(population, batch_size, budget, speculation)
    slow = make_engine(population, batch_size, budget, speculation)
    while (run := fast.advance(0.0, max_steps=max_steps, time_factor=1.5)) is not None:
        singles = [slow.step(0.0, time_factor=1.5) for _ in range(run.steps)]
        assert run.duration_s == pytest.approx(sum(single.duration_s for single in singles), rel=1e-9)
        for count in ("prefill_tokens", "decode_tokens", "emitted_tokens"):
            assert getattr(run, count) == sum(getattr(single, count) for single in singles)
        for listed in ("admitted", "first_tokens", "finished", "preempted"):
            assert getattr(run, listed) == [entry for single in singles for entry in getattr(single, listed)]
        received: dict[int, int] = {}
        for single in singles:
            for request_id, tokens in single.emissions:
                received[request_id] = received.get(request_id, 0) + tokens
        assert dict(run.emissions) == received
        # Only its last step may end a request, and a run of several neither admits nor preempts.
        assert not any(single.finished for single in singles[:-1])
        assert run.steps == 1 or not (run.admitted or run.preempted)
        assert snapshot(fast) == snapshot(slow)
    assert slow.step(0.0) is None


@given(requests, st.integers(1, 8), speculations, st.floats(0.0005, 0.5))
def test_steps_taken_are_those_that_begin_before_the_instant(population, batch_size, speculation, span_s):
    bounded = make_engine(population, batch_size, 60, speculation)
    single = make_engine(population, batch_size, 60, speculation)
    while (ahead := bounded.decode_run()) is None and bounded.running + bounded.waiting:
        bounded.step(0.0)
        single.step(0.0)
    if ahead is None:
        return
    run = bounded.advance(0.0, until=span_s)
    begins, now = [], 0.0
    for _ in range(run.steps):
        begins.append(now)
        now += single.step(now).duration_s
    assert begins[-1] < span_s + 1e-9
    assert run.steps == ahead.steps or now > span_s - 1e-9
    assert run.duration_s == pytest.approx(now, rel=1e-9)


@given(requests, st.integers(1, 8), st.integers(1, 60), speculations)
def test_announced_run_is_the_one_taken(population, batch_size, budget, speculation):
    engine = make_engine(population, batch_size, budget, speculation)
    while True:
        before = snapshot(engine)
        ahead = engine.decode_run()
        assert snapshot(engine) == before
        run = engine.advance(0.0)
        if run is None:
            break
        if ahead is not None:
            assert (run.steps, run.duration_s) == (ahead.steps, ahead.duration_s)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(5, 30), st.just(0), st.just(False)), max_size=4),
    st.integers(2, 8),
    st.lists(st.floats(0.001, 0.03), min_size=1, max_size=6),
)
def test_runs_cut_short_for_newcomers_equal_single_steps(population, batch_size, spans):
    fast, slow = (make_engine(population, batch_size, 30, None, report=False) for _ in range(2))
    for newcomer, span_s in enumerate(spans, start=100):
        while not fast.ahead.plan(1.0) and fast.running + fast.waiting:
            assert fast.step(0.0) == slow.step(0.0)
        planned = fast.ahead.steps
        if planned:
            fast.ahead.cut(span_s)
        steps = fast.ahead.steps
        assert fast.ahead.cut_short == (steps < planned)
        fast.submit(EngineRequest(newcomer, 5, 7))
        for _ in range(steps):
            slow.step(0.0)
        slow.submit(EngineRequest(newcomer, 5, 7))
        together = fast.ahead.take_into_step(1.0)
        if together is not None:
            assert together == slow.step(0.0)
        elif steps:
            fast.ahead.take()
        assert snapshot(fast) == snapshot(slow)


def test_a_run_is_not_taken_after_the_engine_has_changed():
    engine = make_engine([(10, 20, 0, False)], 2, 60, None)
    engine.step(0.0)
    assert engine.ahead.plan(1.0)
    engine.set_batch_size(1)
    with pytest.raises(EngineStateError, match="none is planned"):
        engine.ahead.take()
