"""Dispatch by cached prefixes, worked by hand."""

from __future__ import annotations

import dataclasses

from chiron.policy.dispatch import Decision, DispatchRequest, InstanceView, LeastExpectedWait
from chiron.policy.words import RequestClass, Role

EMPTY = InstanceView(
    instance_id="",
    role=Role.MIXED,
    batch_size=8,
    running=0,
    waiting_interactive=0,
    waiting_batch=0,
    reserved=0,
    queue_allowance=2,
    kv_free_tokens=10_000,
    itl_ms=0.0,
    service_s=2.0,
    prefill_tokens_per_s=1000.0,
)


def view(instance_id: str, **fields: object) -> InstanceView:
    return dataclasses.replace(EMPTY, instance_id=instance_id, **fields)


def pick(
    cached: dict[str, int], *views: InstanceView, kind: RequestClass = RequestClass.INTERACTIVE
) -> Decision:
    found = LeastExpectedWait().pick(DispatchRequest(kind, 1000, frozenset(), cached), views)
    assert isinstance(found, Decision)
    return found


def test_among_equals_the_longest_cached_prefix_wins_and_the_reason_says_so() -> None:
    decision = pick({"b": 200, "c": 700}, view("a"), view("b"), view("c"))
    assert decision.instance_id == "c"
    assert decision.cached_tokens == 700
    assert decision.reason == (
        "free slot on a mixed instance; 700 prompt tokens are cached there, which saves 700 ms"
    )


def test_up_to_a_quarter_more_of_the_slots_is_outweighed_and_no_more() -> None:
    assert pick({"b": 700}, view("a", running=1), view("b", running=3)).instance_id == "b"
    crowded = pick({"b": 700}, view("a", running=1), view("b", running=4))
    assert crowded.instance_id == "a"
    assert crowded.reason == "free slot on a mixed instance"


def test_a_free_slot_goes_before_a_wait_whatever_is_cached() -> None:
    assert pick({"b": 1000}, view("a", running=7), view("b", running=8)).instance_id == "a"


def test_while_all_wait_a_shorter_prefill_makes_up_for_a_longer_wait() -> None:
    # One of eight must end, one does every 2 s / 8: 0.25 s. With another before it: 0.5 s.
    short, long = view("a", running=8), view("b", running=8, reserved=1)
    assert pick({"b": 400}, short, long).instance_id == "b"
    assert pick({"b": 200}, short, long).instance_id == "a"


def test_a_dedicated_instance_goes_before_a_mixed_one_that_has_the_prefix() -> None:
    assert pick({"a": 700}, view("a"), view("z", role=Role.INTERACTIVE)).instance_id == "z"
    batch = pick({"a": 700}, view("a"), view("z", role=Role.BATCH), kind=RequestClass.BATCH)
    assert batch.instance_id == "z"


def test_batch_requests_return_too_among_equals() -> None:
    assert pick({"b": 700}, view("a"), view("b"), kind=RequestClass.BATCH).instance_id == "b"


def test_a_saving_within_the_dead_band_changes_nothing() -> None:
    assert pick({"b": 1}, view("a"), view("b")).instance_id == "a"


def test_a_faster_instance_needs_no_cache() -> None:
    fast, slow = view("a", prefill_tokens_per_s=10_000.0), view("b", prefill_tokens_per_s=1000.0)
    # 1,000 tokens in 0.1 s, or 500 in 0.5 s.
    assert pick({"b": 500}, fast, slow).instance_id == "a"
    assert pick({"b": 950}, fast, slow).instance_id == "b"
