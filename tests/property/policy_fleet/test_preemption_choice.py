"""Preemption frees what is needed, never more, and spares those that must be spared."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.policy.preemption import NoVictims, PreemptionRule, RunningBatch, Victims

RULE = PreemptionRule(max_preemptions=2, min_progress_tokens=10, deadline_resolution_s=60.0)

batches = st.lists(
    st.builds(
        RunningBatch,
        request_id=st.uuids().map(str),
        deadline_s=st.floats(0, 10_000),
        computed_tokens=st.integers(1, 4_000),
        kv_blocks=st.integers(0, 50),
        preemptions=st.integers(0, 3),
        progress_tokens=st.integers(0, 40),
    ),
    max_size=12,
    unique_by=lambda r: r.request_id,
)


def eligible(running: list[RunningBatch]) -> list[RunningBatch]:
    return [r for r in running if r.preemptions < 2 and r.progress_tokens >= 10]


@given(batches, st.integers(0, 6), st.integers(0, 120))
def test_victims_are_enough_and_no_one_of_them_is_superfluous(
    running: list[RunningBatch], slots: int, blocks: int
) -> None:
    choice = RULE.choose(running, slots, blocks)
    allowed = {r.request_id: r for r in eligible(running)}
    if isinstance(choice, NoVictims):
        assert len(allowed) < slots or sum(r.kv_blocks for r in allowed.values()) < blocks
        return
    victims = [allowed[request_id] for request_id in choice.request_ids]
    freed = sum(v.kv_blocks for v in victims)
    assert len(victims) >= slots
    assert freed >= blocks
    for victim in victims:
        assert len(victims) - 1 < slots or freed - victim.kv_blocks < blocks


@given(batches, st.integers(1, 6))
def test_for_slots_alone_nobody_with_an_earlier_deadline_goes_first(
    running: list[RunningBatch], slots: int
) -> None:
    choice = RULE.choose(running, slots, 0)
    if isinstance(choice, Victims):
        gone = set(choice.request_ids)
        for victim, spared in itertools.product(eligible(running), repeat=2):
            if victim.request_id in gone and spared.request_id not in gone:
                assert victim.deadline_s // 60 >= spared.deadline_s // 60


def request(name: str, deadline_s: float, computed: int, blocks: int = 10, **more: int) -> RunningBatch:
    return RunningBatch(name, deadline_s, computed, blocks, progress_tokens=more.pop("progress", 100), **more)


def test_the_latest_deadline_goes_first_and_among_similar_ones_the_least_progress() -> None:
    running = [request("soon", 600, 10), request("long", 3601, 900), request("short", 3610, 50)]
    choice = RULE.choose(running, slots=1, kv_blocks=0)
    assert isinstance(choice, Victims)
    assert choice.request_ids == ("short",)
    assert choice.numbers["tokens_lost"] == 50


def test_blocks_may_ask_for_more_victims_than_slots_and_let_small_ones_off() -> None:
    running = [request("small", 7200, 20, 1), request("large", 3600, 900, 30)]
    choice = RULE.choose(running, slots=1, kv_blocks=25)
    assert isinstance(choice, Victims)
    assert choice.request_ids == ("large",)
    both = RULE.choose(running, slots=1, kv_blocks=31)
    assert isinstance(both, Victims)
    assert set(both.request_ids) == {"small", "large"}


def test_who_was_preempted_too_often_or_has_just_begun_is_spared() -> None:
    often = request("often", 7200, 10, preemptions=2)
    fresh = request("fresh", 7200, 10, progress=9)
    choice = RULE.choose([often, fresh], slots=1, kv_blocks=0)
    assert isinstance(choice, NoVictims)
    assert choice.numbers["eligible"] == 0
    assert "may be preempted" in choice.reason


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"max_preemptions": -1}, "max_preemptions"),
        ({"min_progress_tokens": -1}, "min_progress_tokens"),
        ({"deadline_resolution_s": 0.0}, "deadline_resolution_s"),
    ],
)
def test_a_bad_rule_names_its_field(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PreemptionRule(**settings)  # type: ignore[arg-type]
