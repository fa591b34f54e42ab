"""`dynamo-like`: what its profile tells, what its forecast asks for, what its estimates add and remove."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from chiron.engine import Speculation, get_profile
from chiron.policy.decisions import ModelAssessment, Retire, Start
from chiron.policy.snapshots import FleetInstance, FleetSnapshot, ModelFleet, Traffic
from chiron.policy.words import Phase, Role
from chiron.sim.autoscalers import Beforehand
from chiron.sim.baselines.dynamo import DynamoAutoscaler, DynamoSettings
from chiron.sim.baselines.engine_profile import EngineProfile
from chiron.sim.policies import PolicyChoice
from chiron.sim.settings import SimModel

# 10 ms a step and 0.1 ms a token in it; reading the cache takes no time worth mentioning.
LINE = get_profile("toy").replace(
    step_time_ms=((1, 10.1), (1001, 110.1)),
    kv_bytes_per_token=1,
    kv_read_bytes_per_s=1e18,
    kv_capacity_tokens=16_000,
    default_step_token_budget=256,
)
MODEL = SimModel("m", LINE, initial_batch_size=64, ttft_slo_s=10.0, itl_slo_s=0.2)
PROMPT, OUTPUT = 40.0, 20.0


def engine(
    number: int, *, running: int = 10, waiting: int = 0, itl_s: float = 0.013, phase: Phase = Phase.READY
) -> FleetInstance:
    return FleetInstance(
        f"i{number}",
        "n",
        Role.MIXED,
        phase,
        64,
        64,
        running_interactive=running,
        waiting_interactive=waiting,
        tokens_per_s=running / itl_s,
        kv_usage=running * 50 / 16_000,
        kv_capacity_tokens=16_000,
        phase_age_s=100.0,
    )


def snapshot(now_s: float, *instances: FleetInstance, rate: float = 10.0, **others: Any) -> FleetSnapshot:
    """A second in which as many requests came as ended."""
    count = round(rate)
    traffic = Traffic(
        1.0,
        arrived_interactive=count,
        queued_interactive=others.get("queued", 0),
        finished_interactive=count,
        finished_output_tokens=round(count * OUTPUT),
        finished_prompt_tokens=round(count * PROMPT),
    )
    model = ModelFleet("m", 1, others.get("least", 0), 0, 10.0, 0.2, 2.0, instances, traffic)
    return FleetSnapshot(now_s, (model,), free_gpus={"n": 50})


def planner(**settings: Any) -> DynamoAutoscaler:
    return DynamoAutoscaler(DynamoSettings(**settings), (MODEL,))


def change(autoscaler: DynamoAutoscaler, seen: FleetSnapshot) -> int:
    actions = autoscaler.decide(seen).actions
    return sum(each.count if isinstance(each, Start) else -1 for each in actions)


def watched(
    autoscaler: DynamoAutoscaler, seconds: int, *instances: FleetInstance, rate: float = 10.0
) -> list[int]:
    """What changes at each second from 0, while the fleet stays as it is."""
    return [change(autoscaler, snapshot(float(now_s), *instances, rate=rate)) for now_s in range(seconds + 1)]


def told(autoscaler: DynamoAutoscaler, seen: FleetSnapshot) -> ModelAssessment:
    (assessment,) = autoscaler.decide(seen).assessments
    return assessment


# The profile.


def test_the_profile_is_the_engines_own_where_it_is_linear() -> None:
    profile = EngineProfile(MODEL)

    assert profile.step_s(10, 0, 0) == pytest.approx(0.011)
    assert profile.step_s(10, 90, 0) == pytest.approx(0.020)
    # 246 tokens of room beside ten that decode: two full steps of 35.6 ms and one with the 8 left.
    assert profile.prefill_s(500, 10, 0) == pytest.approx(2 * 0.0356 + 0.0118)
    assert profile.prefill_s(0, 10, 0) == 0.0


def test_reading_the_cache_takes_its_time() -> None:
    slow = SimModel("m", LINE.replace(kv_bytes_per_token=1000, kv_read_bytes_per_s=1e9))

    assert EngineProfile(slow).step_s(10, 0, 5000) == pytest.approx(0.011 + 0.005)


def test_a_staircase_is_known_at_the_measured_sizes_alone() -> None:
    profile = EngineProfile(SimModel("m", get_profile("llama3-8b@a100")))
    truth = dict(get_profile("llama3-8b@a100").step_time_ms)

    # The truth steps from 13 to 18 ms between 128 and 136 tokens; the grid goes from one to the other evenly.
    assert truth[136] - truth[128] > 4
    assert 1e3 * (profile.step_s(136, 0, 0) - profile.step_s(128, 0, 0)) < 1


def test_capacity_is_the_largest_batch_within_the_slos() -> None:
    # A batch of n computes 2 n prompt tokens a step: 10 + 0.3 n ms, n / (20 steps of that) a second.
    profile = EngineProfile(MODEL)

    whole = profile.capacity(PROMPT, OUTPUT, 64, 10.0, 0.2, slower=1.0)
    assert whole.batch_size == 64
    assert whole.itl_s == pytest.approx(0.0292)
    assert whole.requests_per_s == pytest.approx(64 / (20 * 0.0292))
    # 20 ms are kept by 33; a third slower by 16; by one alone if by none.
    assert profile.capacity(PROMPT, OUTPUT, 64, 10.0, 0.02, slower=1.0).batch_size == 33
    assert profile.capacity(PROMPT, OUTPUT, 64, 10.0, 0.02, slower=4 / 3).batch_size == 16
    assert profile.capacity(PROMPT, OUTPUT, 64, 10.0, 0.001, slower=1.0).batch_size == 1
    # The prefill of what a batch admits and of one more: 10 + 0.1 (3 n + 40) ms are 20 ms for 20.
    assert profile.capacity(PROMPT, OUTPUT, 64, 0.0201, 0.2, slower=1.0).batch_size == 20


def test_capacity_ends_where_prompts_starve_or_the_cache_is_full() -> None:
    small = EngineProfile(SimModel("m", LINE.replace(kv_capacity_tokens=1600)))

    # 16 times 40 + 20 / 2 tokens would be half of it: 32.
    assert small.capacity(PROMPT, OUTPUT, 64, 10.0, 0.2, slower=1.0).batch_size == 32
    # A prompt of 100 for every token of 20: 5 n of 256 - n tokens.
    assert EngineProfile(MODEL).capacity(100.0, OUTPUT, 64, 10.0, 0.2, slower=1.0).batch_size == 42


def test_speculation_computes_more_and_answers_sooner() -> None:
    plain = EngineProfile(MODEL)
    drafted = EngineProfile(SimModel("m", LINE.replace(speculation=Speculation(2, 1.0))))

    assert drafted.step_s(10, 0, 0) == pytest.approx(plain.step_s(30, 0, 0))
    assert drafted.tokens_per_step == pytest.approx(3.0)


def test_static_limits_of_the_policy_are_what_is_profiled() -> None:
    made = PolicyChoice("dynamo-like", parameters={"step_token_budget": 64}).make(Beforehand((MODEL,)))

    assert isinstance(made.autoscaler, DynamoAutoscaler)
    assert made.autoscaler._profiles["m"].step_token_budget == 64


# The forecast.


def test_the_forecast_is_the_least_and_comes_every_interval() -> None:
    # One engine serves 109.6 a second; 300 want three. The fleet does not follow: it is asked for again.
    busy = [engine(number, running=64, itl_s=0.0292) for number in range(2)]

    moves = watched(planner(), 190, *busy, rate=300.0)

    assert moves[:180] == [0] * 180
    assert moves[180:] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    autoscaler = planner()
    watched(autoscaler, 359, *busy, rate=300.0)
    assert told(autoscaler, snapshot(360.0, *busy, rate=300.0)).numbers["least"] == 3


def test_without_load_scaling_the_forecast_alone_decides() -> None:
    autoscaler = planner(load_scaling=False)
    busy = [engine(number, running=64, waiting=500) for number in range(5)]

    moves = watched(autoscaler, 180, *busy, rate=250.0)

    assert moves[:180] == [0] * 180
    # 64 of 13 ms each where the profile has 29: more than twice as fast.
    assert moves[180] == -3


def test_profiled_times_are_corrected_by_observed_ones() -> None:
    def least(**settings: Any) -> float:
        autoscaler = planner(load_scaling=False, **settings)
        watched(autoscaler, 179, engine(1, running=64, itl_s=2 * 0.0292), rate=100.0)
        return told(autoscaler, snapshot(180.0, engine(1, running=64, itl_s=2 * 0.0292), rate=100.0)).numbers[
            "least"
        ]

    # An engine serves 109.6 a second as profiled, and half as many where its tokens take twice as long.
    assert least(correction=False) == 1
    assert least() == 2


def test_tokens_of_requests_that_no_report_saw_running_correct_nothing() -> None:
    unseen = dataclasses.replace(engine(1, running=0), tokens_per_s=5.0)
    assert watched(planner(), 400, unseen) == watched(planner(correction=False), 400, unseen)


def test_a_margin_is_told_as_tighter_slos() -> None:
    autoscaler = planner(load_scaling=False, correction=False, slo_share=0.1)
    watched(autoscaler, 179, engine(1), rate=100.0)

    # 20 ms are kept by 33 at once: 33 / (20 x 19.9 ms) are 83 a second.
    assert told(autoscaler, snapshot(180.0, engine(1), rate=100.0)).numbers["least"] == 2


def test_a_trend_is_foretold() -> None:
    found = {}
    for smoothed in (True, False):
        autoscaler = planner(adjustment_s=10.0, load_scaling=False, correction=False, holt_winters=smoothed)
        for now_s in range(210):
            autoscaler.decide(snapshot(float(now_s), engine(1), rate=10.0 + now_s))
        found[smoothed] = told(autoscaler, snapshot(210.0, engine(1), rate=220.0)).numbers["least"]
    # The last interval had 215.5 a second, 2 x 109.6 are 219.2, and it rose by ten in each.
    assert found == {True: 3, False: 2}


# Estimates of the load.


def test_one_more_when_no_engine_keeps_the_first_token() -> None:
    # A slot comes free every 20 x 29 ms / 64, so that 1,200 take 10.9 s; their prefill alone takes 7.3 s.
    full = engine(1, running=64, waiting=1200)

    assert watched(planner(), 10, full) == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert watched(planner(), 10, full, engine(2)) == [0] * 11
    assert change(planner(), snapshot(0.0)) == 1


def test_one_more_when_no_engine_keeps_its_token_times() -> None:
    autoscaler = planner(slo_share=0.1)

    # 64 that run take 29 ms a token where 20 are allowed; nothing waits.
    assert watched(autoscaler, 5, engine(1, running=64)) == [0, 0, 0, 0, 0, 1]


def test_requests_that_wait_in_routers_are_shared_out() -> None:
    autoscaler = planner()
    full = engine(1, running=64)
    for now_s in range(5):
        autoscaler.decide(snapshot(float(now_s), full))

    assert change(autoscaler, snapshot(5.0, full, queued=2000)) == 1


def test_prefill_that_waits_counts_where_slots_are_free() -> None:
    # 4,000 prompts of 40 tokens beside ten that decode: 650 steps of 36 ms.
    assert watched(planner(), 5, engine(1, waiting=40)) == [0] * 6
    roomy = dataclasses.replace(engine(1, waiting=4000), batch_size=8000)
    assert watched(planner(), 5, roomy)[5] == 1


def test_nothing_while_one_loads_or_drains() -> None:
    full = engine(1, running=64, waiting=2000)

    for phase in (Phase.LOADING, Phase.DRAINING):
        assert watched(planner(), 10, full, engine(2, phase=phase)) == [0] * 11


def test_one_fewer_when_the_others_would_keep_a_margin_after_the_first_forecast() -> None:
    moves = watched(planner(), 190, engine(1), engine(2, running=9), engine(3))

    assert moves[:180] == [0] * 180
    assert moves[180] == -1
    decision = planner().decide(snapshot(0.0, engine(1)))
    assert decision.actions == ()


def test_nobody_goes_whose_requests_find_no_slots() -> None:
    # 40 on each of two are 80 for one.
    assert set(watched(planner(), 200, engine(1, running=40), engine(2, running=40))) == {0}
    assert set(watched(planner(), 200, engine(1, running=30), engine(2, running=30))) == {0, -1}


@pytest.mark.parametrize(
    ("parameters", "changed"),
    [
        # Two halves of the cache are all of it.
        ({}, {"kv_usage": 0.5}),
        # Twice 40 that run take 33 ms a token, where the margin is 32.
        ({"slo_share": 0.2}, {"running_interactive": 40, "batch_size": 200}),
        # Twice 180 that wait are 62 steps of 36 ms, where the margin is 2 s.
        ({"slo_share": 0.25}, {"waiting_interactive": 180, "batch_size": 2000}),
    ],
)
def test_nobody_goes_whose_load_would_cost_the_others_their_margin(
    parameters: dict[str, float], changed: dict[str, Any]
) -> None:
    full = [dataclasses.replace(engine(number), **changed) for number in range(2)]
    half = [
        dataclasses.replace(engine(number), **{key: value // 2 for key, value in changed.items()})
        for number in range(2)
    ]
    if "batch_size" in changed:
        half = [dataclasses.replace(each, batch_size=changed["batch_size"]) for each in half]

    assert set(watched(planner(correction=False, **parameters), 200, *full)) == {0}
    assert set(watched(planner(correction=False, **parameters), 200, *half)) == {0, -1}


def test_a_batch_request_counts_by_its_weight() -> None:
    found = {}
    for weight in (1.0, 0.1):
        autoscaler = planner(load_scaling=False, correction=False, batch_weight=weight)
        watched(autoscaler, 179, engine(1), rate=10.0)
        last = snapshot(180.0, engine(1), rate=10.0)
        (model,) = last.models
        burst = dataclasses.replace(model.traffic, arrived_batch=36_000)
        last = dataclasses.replace(last, models=(dataclasses.replace(model, traffic=burst),))
        found[weight] = told(autoscaler, last).numbers["least"]
    # 200 a second more, or 20.
    assert found == {1.0: 2, 0.1: 1}


def test_the_least_loaded_goes_and_the_last_one_stays() -> None:
    autoscaler = planner()
    watched(autoscaler, 179, engine(1), engine(2, running=3))

    (action,) = autoscaler.decide(snapshot(180.0, engine(1), engine(2, running=3))).actions
    assert isinstance(action, Retire)
    assert action.instance_id == "i2"
    assert set(watched(planner(), 400, engine(1, running=0))) == {0}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"adjustment_s": 0.0}, "adjustment_s"),
        ({"sensitivity": 1.1}, "sensitivity"),
        ({"season_s": 200.0}, "season_s"),
        ({"slo_share": 0.0}, "slo_share"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}: "):
        DynamoSettings(**settings)


def test_a_model_that_nobody_has_profiled_is_an_error() -> None:
    with pytest.raises(KeyError):
        DynamoAutoscaler(DynamoSettings(), ()).decide(snapshot(0.0, engine(1)))
