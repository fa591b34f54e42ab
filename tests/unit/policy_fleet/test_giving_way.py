"""When an interactive request counts on a batch request's slot, worked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from chiron.policy.dispatch import (
    Decision,
    DispatchRequest,
    InstanceView,
    LeastExpectedWait,
    Refusal,
    RefusalKind,
)
from chiron.policy.giving_way import REASON, GivingWay
from chiron.policy.words import RequestClass, Role

INTERACTIVE = DispatchRequest(RequestClass.INTERACTIVE)
FULL = InstanceView(
    instance_id="",
    role=Role.MIXED,
    batch_size=4,
    running=4,
    waiting_interactive=0,
    waiting_batch=0,
    reserved=0,
    queue_allowance=2,
    kv_free_tokens=10_000,
    itl_ms=0.0,
    service_s=2.0,
)


def view(instance_id: str, **fields: object) -> InstanceView:
    return dataclasses.replace(FULL, instance_id=instance_id, **fields)


def pick(*views: InstanceView, request: DispatchRequest = INTERACTIVE) -> Decision:
    found = GivingWay(LeastExpectedWait()).pick(request, views)
    assert isinstance(found, Decision)
    return found


def test_a_free_slot_goes_before_one_that_batch_work_holds() -> None:
    decision = pick(view("yields", yielding=4), view("free", running=3))
    assert (decision.instance_id, decision.reason) == ("free", "free slot on a mixed instance")


def test_a_slot_that_batch_work_holds_goes_before_a_short_queue() -> None:
    short = view("short", role=Role.INTERACTIVE, service_s=0.001)
    decision = pick(short, view("yields", yielding=1, service_s=90.0))
    assert decision.instance_id == "yields"
    assert decision.scores["yields"] == 0.0
    assert decision.reason.startswith(REASON)


def test_most_room_after_yielding_wins() -> None:
    assert pick(view("a", yielding=2), view("b", yielding=3)).instance_id == "b"


def test_what_is_on_its_way_there_takes_up_what_would_yield() -> None:
    taken = view("taken", yielding=2, reserved=1, waiting_interactive=1)
    assert pick(taken, view("open", yielding=1)).instance_id == "open"
    # Nobody would yield any more: the queue it is, and a wait.
    decision = pick(taken)
    assert decision.instance_id == "taken"
    assert decision.scores["taken"] > 0
    assert not decision.reason.startswith(REASON)


def test_a_queue_that_only_batch_work_fills_refuses_nobody() -> None:
    full = view("full", yielding=3, queue_allowance=0)
    assert isinstance(LeastExpectedWait().pick(INTERACTIVE, [full]), Refusal)
    assert pick(full).instance_id == "full"
    found = GivingWay(LeastExpectedWait()).pick(INTERACTIVE, [view("full", queue_allowance=0)])
    assert isinstance(found, Refusal)
    assert found.kind is RefusalKind.FULL


def test_batch_work_never_pushes_batch_work_out() -> None:
    found = GivingWay(LeastExpectedWait()).pick(DispatchRequest(RequestClass.BATCH), [view("a", yielding=4)])
    assert isinstance(found, Refusal)


def test_an_excluded_instance_stays_excluded() -> None:
    request = DispatchRequest(RequestClass.INTERACTIVE, excluded=frozenset({"a"}))
    assert pick(view("a", yielding=4), view("b", yielding=1), request=request).instance_id == "b"


class Recording(LeastExpectedWait):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[InstanceView, ...]] = []

    def pick(self, request: DispatchRequest, instances: Sequence[InstanceView]) -> Decision | Refusal:
        self.shown.append(tuple(instances))
        return super().pick(request, instances)


def test_any_dispatcher_is_asked_again_without_the_batch_work_and_only_when_it_must_be() -> None:
    dispatcher = Recording()
    giving_way = GivingWay(dispatcher)
    busy, other = view("busy", yielding=3), view("other", role=Role.INTERACTIVE)
    giving_way.pick(INTERACTIVE, [busy, other])
    giving_way.pick(INTERACTIVE, [busy, other])
    first, second, _, fourth = dispatcher.shown
    assert first == (busy, other)
    assert second == (dataclasses.replace(busy, running=1, yielding=0), other)
    assert fourth[0] is second[0], "a view is made anew only after a change"
    changed = view("busy", yielding=4)
    giving_way.pick(INTERACTIVE, [changed, other])
    assert dispatcher.shown[-1][0].running == 0
    dispatcher.shown.clear()
    giving_way.pick(INTERACTIVE, [view("free", running=1, yielding=1)])
    giving_way.pick(INTERACTIVE, [other])
    assert len(dispatcher.shown) == 2
