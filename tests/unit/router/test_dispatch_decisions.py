"""Least expected wait, worked by hand."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.policy.dispatch import (
    MOST_WAITING,
    Decision,
    DispatchRequest,
    InstanceView,
    LeastExpectedWait,
    Refusal,
    RefusalKind,
    UnknownDispatcherError,
    load_dispatcher,
)
from chiron.policy.words import RequestClass, Role

INTERACTIVE = DispatchRequest(RequestClass.INTERACTIVE)
BATCH = DispatchRequest(RequestClass.BATCH)
EMPTY = InstanceView(
    instance_id="",
    role=Role.MIXED,
    batch_size=4,
    running=0,
    waiting_interactive=0,
    waiting_batch=0,
    reserved=0,
    queue_allowance=2,
    kv_free_tokens=10_000,
    itl_ms=0.0,
    service_s=2.0,
)


def view(instance_id: str, **fields: object) -> InstanceView:
    return dataclasses.replace(EMPTY, instance_id=instance_id, **fields)


def pick(request: DispatchRequest, *views: InstanceView) -> Decision:
    found = LeastExpectedWait().pick(request, views)
    assert isinstance(found, Decision)
    return found


def refusal(request: DispatchRequest, *views: InstanceView) -> RefusalKind:
    found = LeastExpectedWait().pick(request, views)
    assert isinstance(found, Refusal)
    return found.kind


def test_free_slots_whose_engine_has_many_prompts_to_compute_take_no_more() -> None:
    # It has just become ready: most slots are free, and what was sent there waits for its first step.
    young = view("young", batch_size=256, running=20, waiting_interactive=MOST_WAITING - 2, reserved=1)
    old = view("old", batch_size=256, running=250)
    assert pick(INTERACTIVE, young, old).instance_id == "young"
    young = dataclasses.replace(young, reserved=2)
    assert pick(INTERACTIVE, young, old).instance_id == "old"
    # Better to wait at the router, from where it can go to whichever is done sooner.
    assert refusal(INTERACTIVE, young) is RefusalKind.FULL
    # Batch work has hours.
    assert pick(BATCH, young).instance_id == "young"


def test_a_free_slot_goes_before_a_wait() -> None:
    decision = pick(INTERACTIVE, view("full", running=4), view("busy", running=3))
    assert decision.instance_id == "busy"
    # One of four must end; one does every 2 s / 4.
    assert decision.scores == {"full": 0.5, "busy": 0.0}
    assert decision.reason == "free slot on a mixed instance"


def test_among_free_slots_the_lower_share_in_use_wins() -> None:
    large = view("large", batch_size=8, running=3)
    small = view("small", batch_size=4, running=2)
    assert pick(INTERACTIVE, small, large).instance_id == "large"


def test_reservations_count_like_running_requests() -> None:
    assert pick(INTERACTIVE, view("a", reserved=2), view("b", running=1)).instance_id == "b"


def test_equal_shares_go_to_the_faster_instance_then_to_the_first_id() -> None:
    slow, fast = view("a", running=2, itl_ms=30.0), view("b", running=2, itl_ms=20.0)
    assert pick(INTERACTIVE, slow, fast).instance_id == "b"
    assert pick(INTERACTIVE, view("b"), view("a")).instance_id == "a"


def test_among_full_instances_the_shorter_wait_wins() -> None:
    # 2 must end, one every 4 s / 8: 1 s.  1 must end, one every 6 s / 4: 1.5 s.
    wide = view("wide", batch_size=8, running=8, reserved=1, service_s=4.0)
    slow = view("slow", batch_size=4, running=4, service_s=6.0)
    decision = pick(INTERACTIVE, slow, wide)
    assert decision.instance_id == "wide"
    assert decision.scores == {"slow": 1.5, "wide": 1.0}
    assert decision.reason == "no slot is free; least expected wait, on a mixed instance"


def test_interactive_requests_prefer_interactive_instances_with_a_free_slot() -> None:
    dedicated = view("z", role=Role.INTERACTIVE, running=3)
    assert pick(INTERACTIVE, view("a"), dedicated).instance_id == "z"


def test_a_free_slot_on_a_mixed_instance_beats_the_queue_of_an_interactive_one() -> None:
    dedicated = view("z", role=Role.INTERACTIVE, running=4)
    assert pick(INTERACTIVE, view("a", running=3), dedicated).instance_id == "a"


def test_batch_requests_prefer_batch_instances_and_take_spare_slots_of_mixed_ones() -> None:
    dedicated = view("z", role=Role.BATCH, running=3)
    assert pick(BATCH, view("a"), dedicated).instance_id == "z"
    assert pick(BATCH, view("a"), view("z", role=Role.BATCH, running=4)).instance_id == "a"


def test_batch_requests_may_queue_at_batch_instances_but_not_at_mixed_ones() -> None:
    assert pick(BATCH, view("a", role=Role.BATCH, running=4)).instance_id == "a"
    assert refusal(BATCH, view("a", running=4)) is RefusalKind.FULL


def test_waiting_batch_requests_stand_behind_interactive_ones() -> None:
    assert pick(INTERACTIVE, view("a", running=4, waiting_batch=9)).scores == {"a": 0.5}
    assert refusal(BATCH, view("a", running=0, waiting_batch=4)) is RefusalKind.FULL


@pytest.mark.parametrize(("ahead", "full"), [(5, False), (6, True)])
def test_the_queue_allowance_bounds_what_waits_at_a_worker(ahead: int, full: bool) -> None:
    found = LeastExpectedWait().pick(INTERACTIVE, [view("a", running=4, waiting_interactive=ahead - 4)])
    assert isinstance(found, Refusal) is full


def test_free_slots_without_kv_cache_mean_a_wait_behind_those_that_wait() -> None:
    starved = view("a", running=1, waiting_interactive=1, kv_free_tokens=100)
    request = DispatchRequest(RequestClass.INTERACTIVE, prompt_tokens=500)
    # The waiting one and this one each need an end: 2 x 2 s / 4.
    assert pick(request, starved, view("b", running=3)).scores == {"a": 1.0, "b": 0.0}


def test_refusals_say_what_stands_in_the_way() -> None:
    assert refusal(INTERACTIVE) is RefusalKind.NO_INSTANCE
    assert refusal(INTERACTIVE, view("a", role=Role.BATCH)) is RefusalKind.NO_ROLE
    assert refusal(BATCH, view("a", role=Role.INTERACTIVE)) is RefusalKind.NO_ROLE
    assert refusal(INTERACTIVE, view("a", running=6)) is RefusalKind.FULL
    excluding = DispatchRequest(RequestClass.INTERACTIVE, excluded=frozenset({"a"}))
    assert refusal(excluding, view("a")) is RefusalKind.EXCLUDED
    assert refusal(excluding, view("a"), view("b", running=6)) is RefusalKind.FULL


def test_dispatchers_are_found_by_name_or_class() -> None:
    assert isinstance(load_dispatcher("least-expected-wait"), LeastExpectedWait)
    assert isinstance(load_dispatcher("chiron.policy.dispatch:LeastExpectedWait"), LeastExpectedWait)


@pytest.mark.parametrize("name", ["round-robin", "no.such.module:Class", "chiron.policy.dispatch:Role", ""])
def test_an_unknown_dispatcher_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnknownDispatcherError, match=repr(name)):
        load_dispatcher(name)
