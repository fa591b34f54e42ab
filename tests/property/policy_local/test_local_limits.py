"""What holds of local autoscalers whatever the samples say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chiron.policy.local import LocalAutoscaler, ModelAutoscaler, load_local
from chiron.policy.snapshots import InstanceSample

MAKERS = ["reactive", "model"]


@st.composite
def samples(draw: st.DrawFn) -> InstanceSample:
    """Any sample, plausible or not, within what its types and `check` allow."""
    most, most_budget = draw(st.sampled_from([(1, 1), (16, 40), (256, 2048), (1024, 8192)]))
    steps = draw(st.integers(0, 100))
    running = draw(st.integers(0, most))
    return InstanceSample(
        interval_s=draw(st.floats(0.05, 10)),
        batch_size=draw(st.integers(1, most)),
        max_batch_size=most,
        step_token_budget=draw(st.integers(1, most_budget)),
        max_step_token_budget=most_budget,
        running_interactive=running,
        running_batch=draw(st.integers(0, most - running)),
        waiting_interactive=draw(st.integers(0, 3000)),
        waiting_batch=draw(st.integers(0, 3000)),
        steps=steps,
        output_tokens=draw(st.integers(0, 500)) * steps,
        prompt_tokens=draw(st.integers(0, 2000)) * steps,
        itl_mean_s=draw(st.sampled_from([0.0, 0.01, 0.02, 0.1, 3.0])),
        itl_p95_s=0.0,
        itl_slo_s=draw(st.sampled_from([0.0, 0.02, 0.05, 0.2, 2.0])),
        kv_usage=draw(st.floats(0, 1)),
        kv_capacity_tokens=draw(st.sampled_from([0, 1000, 430_000])),
        preemptions=draw(st.integers(0, 5)),
        saturated=draw(st.booleans()),
        draft_tokens=draw(st.sampled_from([0, 0, 3])) * draw(st.integers(0, 500)) * steps,
        accepted_tokens=draw(st.sampled_from([0, 0, 1, 3])) * draw(st.integers(0, 500)) * steps,
    )


@st.composite
def saturated_histories(draw: st.DrawFn) -> list[InstanceSample]:
    """Histories on which the model comes to trust its fit: a noisy line for step times."""
    history = []
    noise = st.floats(-0.02, 0.02)
    kv_usage = 0.05
    for _ in range(draw(st.integers(6, 25))):
        budget = draw(st.sampled_from([128, 256, 512, 1024]))
        running = draw(st.integers(8, 512))
        decoding = min(running, budget * 2 // 3)
        tokens = min(budget, decoding * 3 // 2)
        kv_usage = min(0.95, kv_usage + draw(st.floats(0, 0.04)))
        step_s = (0.006 + 6e-5 * tokens + 8e-8 * kv_usage * 430_000) * (1 + draw(noise))
        steps = max(1, round(1 / step_s))
        history.append(
            InstanceSample(
                interval_s=steps * step_s,
                batch_size=running,
                max_batch_size=1024,
                step_token_budget=budget,
                max_step_token_budget=8192,
                running_interactive=running,
                running_batch=0,
                waiting_interactive=draw(st.sampled_from([5, 2000])),
                waiting_batch=0,
                steps=steps,
                output_tokens=decoding * steps,
                prompt_tokens=(tokens - decoding) * steps,
                itl_mean_s=step_s,
                itl_p95_s=step_s,
                itl_slo_s=1.0,
                kv_usage=kv_usage,
                kv_capacity_tokens=430_000,
                preemptions=0,
                saturated=draw(st.sampled_from([True, True, True, False])),
            )
        )
    return history


@pytest.mark.parametrize("name", MAKERS)
@given(history=st.lists(samples(), min_size=1, max_size=25))
@settings(max_examples=150, deadline=None)
def test_limits_stay_within_bounds(name: str, history: list[InstanceSample]) -> None:
    autoscaler = load_local(name)
    for sample in history:
        limits = autoscaler.decide(sample)
        assert 1 <= limits.batch_size <= sample.max_batch_size
        assert 1 <= limits.step_token_budget <= sample.max_step_token_budget
        assert 1 <= limits.safe_batch_size <= sample.max_batch_size
        assert limits.reason


@pytest.mark.parametrize("name", MAKERS)
@given(history=st.lists(samples(), min_size=1, max_size=25))
@settings(max_examples=100, deadline=None)
def test_nothing_grows_on_a_sample_with_spare_slots(name: str, history: list[InstanceSample]) -> None:
    autoscaler = load_local(name)
    for sample in history:
        limits = autoscaler.decide(sample)
        if not sample.saturated:
            assert limits.batch_size <= sample.batch_size


@pytest.mark.parametrize("name", MAKERS)
@given(history=saturated_histories(), slos=st.tuples(st.floats(0.003, 3), st.floats(0.003, 3)))
@settings(max_examples=150, deadline=None)
def test_a_looser_slo_never_yields_a_smaller_safe_batch_size(
    name: str, history: list[InstanceSample], slos: tuple[float, float]
) -> None:
    tight, loose = load_local(name), load_local(name)
    for sample in history:
        under_tight = tight.decide(replace(sample, itl_slo_s=min(slos)))
        under_loose = loose.decide(replace(sample, itl_slo_s=max(slos)))
        assert under_tight.safe_batch_size <= under_loose.safe_batch_size


@given(history=saturated_histories())
@settings(max_examples=50, deadline=None)
def test_the_histories_above_reach_a_trusted_model(history: list[InstanceSample]) -> None:
    # Repeated steps that follow the fitted form must be believed: else the property above says little.
    autoscaler = ModelAutoscaler()
    calm = replace(history[0], saturated=True)
    for _ in range(10):
        limits = autoscaler.decide(calm)
    assert not limits.reason.startswith("model not trusted")


@pytest.mark.parametrize("name", MAKERS)
@given(history=st.lists(samples(), min_size=1, max_size=15), others=st.lists(samples(), max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_same_samples_give_the_same_decisions_whatever_other_instances_see(
    name: str, history: list[InstanceSample], others: list[InstanceSample]
) -> None:
    alone = decisions(load_local(name), history)
    beside, neighbour = load_local(name), load_local(name)
    together = []
    for place, sample in enumerate(history):
        if others:
            neighbour.decide(others[place % len(others)])
        together.append(beside.decide(sample))
    assert together == alone


def decisions(autoscaler: LocalAutoscaler, history: list[InstanceSample]) -> list[object]:
    return [autoscaler.decide(sample) for sample in history]
