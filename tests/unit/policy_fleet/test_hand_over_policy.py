"""Who hands over how fast, and which streams go: nothing without room, nothing that would break a promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.hand_over import Grant, HandOverRule, RunningStream, choose, grants
from chiron.policy.snapshots import NEVER_S, BatchBacklog, FleetInstance, ModelFleet, Traffic
from chiron.policy.words import Phase, Role

ITL_SLO_S = 0.2
RULE = HandOverRule()


def instance(key: str, running: int = 0, **more: object) -> FleetInstance:
    values: dict[str, object] = {
        "role": Role.MIXED,
        "phase": Phase.READY,
        "batch_size": 100,
        "safe_batch_size": 100,
        "running_interactive": running,
        "tokens_per_s": 20.0 * running,
        "kv_usage": running / 200,
        "kv_capacity_tokens": 100_000,
        "step_token_budget": 512,
    }
    return FleetInstance(key, "n", **(values | more))  # type: ignore[arg-type]


def model(*instances: FleetInstance, **more: object) -> ModelFleet:
    values: dict[str, object] = {"traffic": Traffic(1.0)}
    return ModelFleet("m", 1, 0, 0, 10.0, ITL_SLO_S, 2.0, instances, **(values | more))  # type: ignore[arg-type]


def leaving(key: str, running: int, **more: object) -> FleetInstance:
    return instance(key, running, phase=Phase.DRAINING, **more)


def test_what_leaves_gets_the_room_that_the_others_have() -> None:
    granted = grants(model(leaving("a", 40), instance("b", 45)), {"a"})

    # 95 slots may be in use at "b": 50 are free, given away in 2 s.
    assert granted["a"].interactive_per_s == pytest.approx(25.0)
    # A step of 45 decodes takes 1/20 s and has room for 467 tokens, of which arrivals keep half.
    assert granted["a"].tokens_per_s == pytest.approx(0.5 * 467 * 20)
    assert granted["a"].prefill_tokens_per_s == pytest.approx(0.5 * 467 * 20)
    assert granted["a"].batch_per_s == 0.0


@pytest.mark.parametrize(
    "other",
    [
        instance("b", 95),
        instance("b", 10, waiting_interactive=1),
        instance("b", 10, waiting_batch=1),
        instance("b", 10, kv_usage=0.95),
        instance("b", 50, step_token_budget=50),
        instance("b", 10, role=Role.BATCH),
        instance("b", 0, phase=Phase.LOADING),
        instance("b", 0, phase=Phase.SLEEPING),
        leaving("b", 10),
        instance("b", 10, safe_batch_size=10),
    ],
    ids=["full", "queue", "batch queue", "cache", "steps", "role", "loads", "sleeps", "drains", "unsafe"],
)
def test_nothing_goes_where_there_is_no_room(other: FleetInstance) -> None:
    assert not any(grants(model(leaving("a", 40), other), {"a"}).values())


def test_who_waits_at_the_router_goes_first() -> None:
    fleet = model(leaving("a", 40, running_batch=5), instance("b", 10))
    queued = grants(replace(fleet, traffic=Traffic(1.0, queued_interactive=1)), {"a"})["a"]
    assert queued.interactive_per_s == 0.0 < queued.batch_per_s
    backlog = grants(replace(fleet, backlog=(BatchBacklog(60.0, 1, 100),)), {"a"})["a"]
    assert backlog.batch_per_s == 0.0 < backlog.interactive_per_s


def test_an_instance_keeps_its_streams_while_half_of_its_slots_are_in_use() -> None:
    assert grants(model(leaving("a", 51), instance("b", 10)), {"a"}) == {}
    assert grants(model(leaving("a", 50), instance("b", 10)), {"a"})["a"]


def test_the_one_that_is_empty_soonest_is_emptied_first() -> None:
    fleet = model(leaving("a", 40), leaving("b", 6), leaving("c", 20), instance("d", 45), instance("e", 70))
    granted = grants(fleet, {"a", "b", "c"})
    # 50 and 25 slots: 37.5 streams a second. Six within a quarter of a second would be 24 of them.
    assert granted["b"].interactive_per_s == pytest.approx(24.0)
    assert granted["c"].interactive_per_s == pytest.approx(13.5)
    assert not granted["a"]


def test_what_drains_unasked_is_left_alone() -> None:
    assert grants(model(leaving("a", 4), instance("b", 4)), ()) == {}


fleets = st.lists(
    st.builds(
        instance,
        st.uuids().map(str),
        st.integers(0, 120),
        phase=st.sampled_from([Phase.READY, Phase.DRAINING, Phase.LOADING]),
        role=st.sampled_from(Role),
        running_batch=st.integers(0, 40),
        waiting_interactive=st.integers(0, 1),
        kv_usage=st.floats(0, 1),
        step_token_budget=st.integers(0, 2048),
    ),
    max_size=8,
    unique_by=lambda each: each.instance_id,
)


@given(fleets)
def test_no_more_is_granted_than_there_is_room_for(instances: list[FleetInstance]) -> None:
    going = {each.instance_id for each in instances if each.phase is Phase.DRAINING}
    granted = grants(model(*instances), going)
    assert granted.keys() <= going
    stay = [each for each in instances if each.phase is Phase.READY]
    free = sum(
        max(0.0, RULE.fill * 100 - each.running_interactive - each.running_batch)
        for each in stay
        if not each.waiting_interactive
    )
    for field in ("interactive_per_s", "batch_per_s"):
        rates = [getattr(each, field) for each in granted.values()]
        assert min(rates, default=0) >= 0
        assert sum(rates) * RULE.spread_s <= free + 1e-6
    # The rest of the steps, and no more than half of it.
    rest = sum(
        max(0, each.step_token_budget - each.running_interactive - each.running_batch)
        * (each.tokens_per_s / max(1, each.running_interactive + each.running_batch) or 10.0)
        for each in stay
    )
    assert sum(each.tokens_per_s for each in granted.values()) <= 0.5 * rest + 1e-6


def stream(key: int, delivered: int = 100, **more: object) -> RunningStream:
    values: dict[str, object] = {
        "batch": False,
        "prompt_tokens": 50,
        "streaming_s": 0.05 * delivered,
        "itl_slo_s": ITL_SLO_S,
    }
    return RunningStream(key, delivered_tokens=delivered, **(values | more))  # type: ignore[arg-type]


def chosen(*streams: RunningStream, interactive: float = 10, batch: float = 10, tokens: float = 1e6) -> tuple:  # type: ignore[type-arg]
    return choose(
        streams, interactive=interactive, batch=batch, tokens=tokens, prefill_tokens_per_s=1000.0
    ).request_ids


def test_those_that_have_most_behind_them_go_first() -> None:
    assert chosen(stream(1, 50), stream(2, 200), stream(3, 100), interactive=2) == (2, 3)


def test_a_fraction_of_a_stream_is_none_and_each_class_has_its_own_room() -> None:
    assert chosen(stream(1), interactive=0.9) == ()
    assert chosen(stream(1), stream(2, batch=True, itl_slo_s=NEVER_S), interactive=0) == (2,)


def test_tokens_bound_what_goes_too() -> None:
    # 250 tokens each: the second begins before 300 are reached, the third does not.
    assert chosen(stream(1, 200), stream(2, 200), stream(3, 200), tokens=300) == (1, 2)


@pytest.mark.parametrize(
    "stays",
    [
        {"resumable": False},
        {"moved_s": 9.9},
        # 150 tokens take 0.15 s, and 0.1 s is lost beside: 8 s + 0.25 s over 100 tokens is no 80 % of 0.1 s.
        {"itl_slo_s": 0.1, "streaming_s": 7.8},
        # More than 3 s without a token.
        {"prompt_tokens": 2900},
    ],
    ids=["not resumable", "moved lately", "slo too tight", "too long a gap"],
)
def test_some_stay(stays: dict[str, object]) -> None:
    assert chosen(stream(1)) == (1,)
    assert chosen(stream(1, **stays)) == ()


def test_without_a_token_or_a_rate_nobody_goes() -> None:
    assert chosen(stream(1, 0)) == ()
    found = choose([stream(1)], interactive=1, batch=1, tokens=1e6, prefill_tokens_per_s=0.0)
    assert found.request_ids == ()


streams = st.lists(
    st.builds(
        stream,
        st.integers(0, 10**6),
        st.integers(0, 2000),
        batch=st.booleans(),
        prompt_tokens=st.integers(1, 5000),
        streaming_s=st.floats(0, 600),
        itl_slo_s=st.sampled_from([0.05, 0.2, NEVER_S]),
        resumable=st.booleans(),
        moved_s=st.sampled_from([0.0, 9.0, 11.0, float("inf")]),
    ),
    max_size=12,
    unique_by=lambda each: each.request_id,
)


@given(streams, st.floats(0, 8), st.floats(0, 8), st.floats(0, 20_000), st.floats(1, 20_000))
def test_no_promise_is_broken_by_a_move(
    found: list[RunningStream], interactive: float, batch: float, tokens: float, per_s: float
) -> None:
    choice = choose(found, interactive=interactive, batch=batch, tokens=tokens, prefill_tokens_per_s=per_s)
    by_id = {each.request_id: each for each in found}
    gone = [by_id[key] for key in choice.request_ids]
    assert len(set(choice.request_ids)) == len(gone)
    assert sum(not each.batch for each in gone) <= interactive
    assert sum(each.batch for each in gone) <= batch
    costs = [each.prompt_tokens + each.delivered_tokens for each in gone]
    assert choice.tokens == sum(costs)
    assert not gone or sum(costs[:-1]) < tokens
    for each, cost in zip(gone, costs, strict=True):
        gap_s = RULE.overhead_s + cost / per_s
        assert each.resumable
        assert each.moved_s >= RULE.again_s
        assert gap_s <= RULE.longest_gap_s
        assert (each.streaming_s + gap_s) / each.delivered_tokens <= RULE.itl_share * each.itl_slo_s + 1e-9


def test_settings_out_of_range_are_named() -> None:
    for name in ("begin_below", "fill", "prefill_share", "itl_share", "spread_s"):
        with pytest.raises(ValueError, match=name):
            HandOverRule(**{name: 0.0})
    for name in ("overhead_s", "longest_gap_s", "again_s"):
        with pytest.raises(ValueError, match=name):
            HandOverRule(**{name: -1.0})


def test_a_grant_without_tokens_or_streams_is_none() -> None:
    assert not Grant()
    assert not Grant(interactive_per_s=1.0)
    assert not Grant(tokens_per_s=1.0)
    assert Grant(batch_per_s=1.0, tokens_per_s=1.0)
