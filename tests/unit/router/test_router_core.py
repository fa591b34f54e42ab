"""The router's core: events in, instructions out, on a clock that the test holds."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.giving_way import REASON
from chiron.policy.words import RequestClass
from chiron.rpc.errors import Reason
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.outcomes import Blame
from services.router.request import (
    CloseWatch,
    Ended,
    Instruction,
    OpenWatch,
    PendingRequest,
    Place,
    Placement,
    Refuse,
)
from services.router.table import EpochGapError

TTL_S, PAUSE_S = 2.0, 1.0
READY, DRAINING = types_pb2.INSTANCE_STATE_READY, types_pb2.INSTANCE_STATE_DRAINING


class Rig:
    """A core with model `m`, its instances and the numbers of their subscriptions."""

    def __init__(self, *instances: str, queue_limit: int = 10) -> None:
        settings = CoreSettings(queue_limit, worker_queue=0, retry_pause_s=PAUSE_S, ticket_ttl_s=TTL_S)
        self.core = RouterCore(settings, LeastExpectedWait())
        self.watches: dict[str, int] = {}
        self.note(self.core.snapshot(table(*instances), 0.0))
        for key in instances:
            self.load(key)

    def note(self, instructions: list[Instruction]) -> list[Instruction]:
        for instruction in instructions:
            if isinstance(instruction, OpenWatch):
                self.watches[instruction.instance_id] = instruction.watch
        return instructions

    def load(self, key: str, now: float = 0.0, *, running: int = 0, **fields: object) -> list[Instruction]:
        message = worker_pb2.WatchLoadResponse(
            **{
                "instance_id": key,
                "incarnation": 1,
                "role": types_pb2.ROLE_MIXED,
                "state": READY,
                "batch_size": 1,
                "running": types_pb2.ClassCounts(interactive=running),
                "batch_credits": 8,
                "batch_credit_ttl_ms": 60_000,
                **fields,
            }
        )
        return self.core.load(key, self.watches[key], message, now)

    def submit(
        self, name: str, now: float = 0.0, **fields: object
    ) -> tuple[PendingRequest, list[Instruction]]:
        fields = {"request_class": RequestClass.INTERACTIVE, **fields}
        request = PendingRequest(name, "m", arrived=now, **fields)
        return request, self.core.submit(request, now)


def table(*instances: str, epoch: int = 1, term: int = 1) -> control_pb2.RoutingTable:
    return control_pb2.RoutingTable(
        epoch=epoch,
        term=term,
        models=[control_pb2.RoutedModel(name="m")],
        instances=[routed(key) for key in instances],
    )


def routed(key: str, address: str = "") -> control_pb2.RoutedInstance:
    return control_pb2.RoutedInstance(
        instance_id=key,
        incarnation=1,
        model="m",
        address=address or f"host-{key}:1",
        role=types_pb2.ROLE_MIXED,
        state=READY,
    )


def placement(instructions: list[Instruction]) -> Placement:
    [place] = instructions
    assert isinstance(place, Place)
    return place.placement


def placed(instructions: list[Instruction]) -> list[tuple[str, str]]:
    return [
        (place.request.request_id, place.placement.instance_id)
        for place in instructions
        if isinstance(place, Place)
    ]


def test_an_instance_of_the_table_is_watched_at_its_address() -> None:
    core = RouterCore(CoreSettings(1, 0, PAUSE_S, TTL_S), LeastExpectedWait())
    assert core.snapshot(table("a"), 0.0) == [OpenWatch("a", "host-a:1", 1)]


def test_an_instance_without_an_address_is_not_watched_yet() -> None:
    rig = Rig()
    pending = control_pb2.RoutedInstance(instance_id="a", model="m")
    assert rig.core.delta(control_pb2.RoutingDelta(epoch=2, instances=[pending]), 0.0) == []
    delta = control_pb2.RoutingDelta(epoch=3, instances=[routed("a")])
    assert rig.core.delta(delta, 0.0) == [OpenWatch("a", "host-a:1", 1)]


def test_a_moved_instance_is_watched_anew_and_a_removed_one_no_more() -> None:
    rig = Rig("a")
    moved = control_pb2.RoutingDelta(epoch=2, instances=[routed("a", "elsewhere:2")])
    assert rig.core.delta(moved, 0.0) == [CloseWatch("a"), OpenWatch("a", "elsewhere:2", 2)]
    removed = control_pb2.RoutingDelta(epoch=3, removed_instance_ids=["a"])
    assert rig.core.delta(removed, 0.0) == [CloseWatch("a")]


def test_a_delta_after_a_gap_changes_nothing() -> None:
    rig = Rig("a")
    with pytest.raises(EpochGapError, match="epoch 1; the delta is for 3"):
        rig.core.delta(control_pb2.RoutingDelta(epoch=3, removed_instance_ids=["a"]), 0.0)
    assert placed(rig.submit("r")[1]) == [("r", "a")]


def test_a_freed_slot_goes_to_the_first_that_waits() -> None:
    rig = Rig("a")
    rig.load("a", running=1)
    assert rig.submit("first")[1] == []
    assert rig.submit("urgent", priority=-1)[1] == []
    assert placed(rig.load("a", running=0)) == [("urgent", "a")]


def test_a_reservation_holds_the_slot_until_the_worker_counts_it() -> None:
    rig = Rig("a")
    rig.submit("r")
    rig.submit("waits")
    # An older count, sent before the worker had the request, frees nothing.
    assert rig.load("a") == []
    assert rig.load("a", running=1, started_request_ids=["r"]) == []
    assert placed(rig.load("a", finished_request_ids=["r"])) == [("waits", "a")]


def test_an_unused_reservation_lapses() -> None:
    rig = Rig("a")
    rig.submit("r", now=10.0)
    rig.submit("waits", now=10.5)
    assert rig.core.next_tick == 12.0
    assert rig.core.tick(11.9) == []
    assert placed(rig.core.tick(12.0)) == [("waits", "a")]


def test_an_ended_request_gives_its_reservation_back_at_once() -> None:
    rig = Rig("a")
    first = placement(rig.submit("r")[1])
    rig.submit("waits")
    assert placed(rig.core.release(first.reservation, 0.0)) == [("waits", "a")]
    assert rig.core.release(first.reservation, 0.0) == []


def test_a_refusal_sends_the_request_elsewhere_and_its_place_to_others() -> None:
    rig = Rig("a", "b")
    request, out = rig.submit("r")
    rig.submit("s")
    rig.submit("waits")
    assert placed(rig.core.failed(request, placement(out), Blame.NONE, 0.0)) == [("waits", "a")]
    # b is taken: r waits for it, and not for a.
    assert rig.core.submit(request, 0.0) == []
    assert rig.load("a", running=0, started_request_ids=["waits"]) == []
    assert placed(rig.load("b", running=0, started_request_ids=["s"])) == [("r", "b")]


def test_an_unreachable_instance_is_used_again_only_after_a_new_subscription() -> None:
    rig = Rig("a", "b")
    request, out = rig.submit("r")
    old = rig.watches["a"]
    instructions = rig.note(rig.core.failed(request, placement(out), Blame.UNREACHABLE, 0.0))
    assert instructions == [CloseWatch("a"), OpenWatch("a", "host-a:1", 3)]
    late = worker_pb2.WatchLoadResponse(instance_id="a", incarnation=1, state=READY, batch_size=1)
    assert rig.core.load("a", old, late, 0.0) == []
    assert placed(rig.submit("s")[1]) == [("s", "b")]
    assert rig.submit("t")[1] == []
    assert placed(rig.load("a")) == [("t", "a")]


def test_when_every_instance_has_refused_each_is_tried_again_after_the_pause() -> None:
    rig = Rig("a")
    request, out = rig.submit("r")
    rig.core.failed(request, placement(out), Blame.NONE, 5.0)
    assert rig.core.submit(request, 5.0) == []
    assert rig.load("a", 5.5) == []
    assert rig.core.next_tick == 5.0 + PAUSE_S
    assert placed(rig.core.tick(5.0 + PAUSE_S)) == [("r", "a")]


def test_an_instance_of_an_unfitting_role_does_not_keep_a_request_from_the_one_that_refused_it() -> None:
    rig = Rig("a", "b")
    rig.load("b", role=types_pb2.ROLE_BATCH)
    request, out = rig.submit("r")
    rig.core.failed(request, placement(out), Blame.NONE, 5.0)
    assert rig.core.submit(request, 5.0) == []
    assert rig.core.next_tick == 5.0 + PAUSE_S
    assert placed(rig.core.tick(5.0 + PAUSE_S)) == [("r", "a")]


def test_while_the_others_stay_full_one_that_refused_is_tried_again_after_the_pause() -> None:
    rig = Rig("a", "b")
    rig.load("b", running=1)
    request, out = rig.submit("r")
    rig.core.failed(request, placement(out), Blame.NONE, 5.0)
    assert rig.core.submit(request, 5.0) == []
    assert placed(rig.core.tick(5.0 + PAUSE_S)) == [("r", "a")]


def test_one_that_refused_is_the_last_choice_also_after_the_pause() -> None:
    rig = Rig("a", "b")
    request, out = rig.submit("r")
    rig.core.failed(request, placement(out), Blame.NONE, 5.0)
    assert placed(rig.core.submit(request, 5.0 + 2 * PAUSE_S)) == [("r", "b")]


def test_a_new_incarnation_is_not_excluded() -> None:
    rig = Rig("a")
    request, out = rig.submit("r")
    rig.core.failed(request, placement(out), Blame.NONE, 0.0)
    rig.core.submit(request, 0.0)
    assert placed(rig.load("a", incarnation=2)) == [("r", "a")]


def test_a_request_that_may_go_nowhere_does_not_hold_up_those_behind_it() -> None:
    rig = Rig("a", "b")
    rig.load("b", running=1)
    picky, out = rig.submit("picky", excluded_ids=("a",))
    assert out == []
    assert placed(rig.submit("next")[1]) == [("next", "a")]
    assert placed(rig.load("b", running=0)) == [("picky", "b")]
    assert picky.request_id == "picky"


def test_a_draining_instance_and_one_whose_stream_is_lost_get_nothing() -> None:
    rig = Rig("a", "b")
    rig.load("a", state=DRAINING)
    rig.core.watch_lost("b", rig.watches["b"], 0.0)
    assert rig.submit("r")[1] == []
    assert placed(rig.load("b")) == [("r", "b")]


def leaving(key: str, epoch: int, state: types_pb2.InstanceState.ValueType) -> control_pb2.RoutingDelta:
    instance = routed(key)
    instance.state = state
    return control_pb2.RoutingDelta(epoch=epoch, instances=[instance])


def test_an_instance_that_the_table_calls_draining_gets_nothing_new_and_keeps_what_is_promised() -> None:
    rig = Rig("a", "b")
    promised = rig.submit("r")[1]
    assert placed(promised) == [("r", "a")]
    assert rig.core.delta(leaving("a", 2, DRAINING), 0.0) == []
    rig.load("b", running=1)
    assert rig.submit("s")[1] == []
    assert rig.core.has_ticket("r") is False
    rig.load("a", running=1, started_request_ids=["r"])
    assert rig.load("a", running=0, finished_request_ids=["r"]) == []
    assert placed(rig.load("b", running=0)) == [("s", "b")]


def test_an_instance_that_is_to_stay_after_all_is_used_again() -> None:
    rig = Rig("a")
    rig.core.delta(leaving("a", 2, DRAINING), 0.0)
    assert rig.submit("r")[1] == []
    assert placed(rig.core.delta(leaving("a", 3, READY), 0.0)) == [("r", "a")]


def test_what_an_earlier_controller_wanted_of_an_instance_is_void() -> None:
    rig = Rig("a")
    rig.core.delta(leaving("a", 2, DRAINING), 0.0)
    assert rig.core.snapshot(control_pb2.RoutingTable(epoch=1, term=2), 0.0) == []
    assert placed(rig.submit("r")[1]) == [("r", "a")]


def test_another_worker_at_the_address_is_not_taken_for_the_instance() -> None:
    rig = Rig("a")
    rig.load("a", instance_id="stranger")
    assert rig.submit("r")[1] == []


def test_a_full_queue_refuses_newcomers_but_not_those_that_it_let_in_before() -> None:
    rig = Rig("a", queue_limit=1)
    request, out = rig.submit("r")
    rig.submit("waits")
    [refused] = rig.submit("too many")[1]
    assert isinstance(refused, Refuse)
    assert refused.error.reason is Reason.QUEUE_FULL
    # One waits for the only slot; slots free every 2 s (nothing has been measured yet).
    assert refused.error.retry_after_s == 2.0
    rig.load("a", running=1)
    rig.core.failed(request, placement(out), Blame.NONE, 0.0)
    assert rig.core.submit(request, 0.0) == []


def test_waiting_batch_requests_take_no_place_of_interactive_ones() -> None:
    rig = Rig("a", queue_limit=1)
    rig.load("a", running=1)
    assert rig.submit("batch", request_class=RequestClass.BATCH)[1] == []
    [refused] = rig.submit("too many", request_class=RequestClass.BATCH)[1]
    assert isinstance(refused, Refuse)
    assert rig.submit("interactive")[1] == []
    assert placed(rig.load("a")) == [("interactive", "a")]


def test_a_request_that_comes_again_gives_back_the_slot_of_its_unused_ticket() -> None:
    rig = Rig("a")
    rig.submit("r", lookaside=True)
    # Its client could not reach the worker and goes through the router.
    assert placed(rig.submit("r")[1]) == [("r", "a")]


def test_a_request_that_comes_again_keeps_its_place_in_the_order() -> None:
    rig = Rig("a", queue_limit=1)
    rig.submit("r", lookaside=True)
    rig.submit("waits")
    assert placed(rig.submit("r")[1]) == [("r", "a")]


def test_the_slot_of_an_unused_ticket_goes_to_those_that_wait_when_its_request_goes_elsewhere() -> None:
    rig = Rig("a", "b")
    rig.load("b", running=1)
    rig.submit("r", lookaside=True)
    rig.submit("waits")
    assert placed(rig.submit("r", lookaside=True, excluded_ids=("a",))[1]) == [("waits", "a")]


def test_a_cancelled_request_is_not_placed() -> None:
    rig = Rig("a")
    rig.load("a", running=1)
    request, _ = rig.submit("r")
    rig.core.cancel(request)
    assert rig.load("a", running=0) == []


def test_waiting_requests_are_refused_when_their_model_goes_or_fails() -> None:
    rig = Rig()
    request, _ = rig.submit("r")
    failed = control_pb2.RoutedModel(name="m", failed=True, reason="no GPU")
    [refused] = rig.core.delta(control_pb2.RoutingDelta(epoch=2, models=[failed]), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.request is request
    assert (refused.error.reason, refused.error.message) == (
        Reason.NO_INSTANCE,
        "model 'm' cannot serve: no GPU",
    )


def test_a_model_that_the_controller_calls_failed_serves_on_where_a_worker_says_ready() -> None:
    rig = Rig("a")
    failed = control_pb2.RoutedModel(name="m", failed=True, reason="stale news")
    rig.core.delta(control_pb2.RoutingDelta(epoch=2, models=[failed]), 0.0)
    assert placed(rig.submit("r")[1]) == [("r", "a")]


def test_service_time_is_learnt_from_requests_that_ended() -> None:
    core = RouterCore(CoreSettings(5, 2, PAUSE_S, TTL_S), LeastExpectedWait())
    core.snapshot(table("a"), 0.0)
    busy = {"instance_id": "a", "state": READY, "batch_size": 1, "running": {"interactive": 1}}
    core.load("a", 1, worker_pb2.WatchLoadResponse(**busy, started_request_ids=["x"]), 10.0)
    core.load("a", 1, worker_pb2.WatchLoadResponse(**busy, finished_request_ids=["x"]), 16.0)
    [place] = core.submit(PendingRequest("r", "m", RequestClass.INTERACTIVE, 16.0), 16.0)
    assert isinstance(place, Place)
    assert place.placement.decision.scores == {"a": 6.0}


def test_the_end_of_a_lookaside_request_is_told_once() -> None:
    rig = Rig("a")
    rig.submit("r", lookaside=True)
    assert rig.load("a", running=1, started_request_ids=["r"]) == []
    assert rig.load("a", finished_request_ids=["r"]) == [Ended("m", RequestClass.INTERACTIVE)]
    assert rig.load("a", finished_request_ids=["r"]) == []


def test_a_successor_that_lists_nothing_takes_no_serving_instance_away() -> None:
    rig = Rig("a", "b")
    rig.load("b", state=DRAINING)
    empty = control_pb2.RoutingTable(epoch=1, term=2)
    assert rig.core.snapshot(empty, 0.0) == [CloseWatch("b")]
    assert placed(rig.submit("r")[1]) == [("r", "a")]
    # Still so when the successor repeats itself, until it or the worker says otherwise.
    assert rig.core.snapshot(empty, 0.0) == []
    assert rig.load("a", state=DRAINING) == [CloseWatch("a")]
    [refused] = rig.submit("s")[1]
    assert isinstance(refused, Refuse)
    assert refused.error.reason is Reason.MODEL_NOT_FOUND


def test_the_same_controller_is_believed_when_it_lists_nothing() -> None:
    rig = Rig("a")
    assert rig.core.snapshot(control_pb2.RoutingTable(epoch=9, term=1), 0.0) == [CloseWatch("a")]
    [refused] = rig.submit("r")[1]
    assert isinstance(refused, Refuse)
    assert refused.error.message == "unknown model 'm': no model is applied"


def test_whoever_says_that_it_goes_on_is_let_in_before_others_but_not_without_end() -> None:
    rig = Rig("a", queue_limit=1)
    rig.load("a", running=1)
    assert rig.submit("waits")[1] == []
    resumed = [rig.submit(f"r-{n}", resumed_at=0.0)[1] for n in range(17)]
    assert resumed[:16] == [[]] * 16
    [refused] = resumed[16]
    assert isinstance(refused, Refuse)
    assert refused.error.reason is Reason.QUEUE_FULL
    assert placed(rig.load("a"))[0][0] == "r-0"


def test_a_resumed_stream_that_leaves_makes_room_for_the_next() -> None:
    rig = Rig("a", queue_limit=1)
    rig.load("a", running=1)
    waiting = [rig.submit(f"r-{n}", resumed_at=0.0)[0] for n in range(16)]
    rig.core.cancel(waiting[0])
    assert rig.submit("r-16", resumed_at=0.0)[1] == []


def test_where_callers_are_tenants_other_models_are_not_named() -> None:
    settings = CoreSettings(10, worker_queue=0, retry_pause_s=PAUSE_S, ticket_ttl_s=TTL_S, tell_models=False)
    core = RouterCore(settings, LeastExpectedWait())
    core.snapshot(table("a"), 0.0)
    [refused] = core.submit(PendingRequest("r", "n", RequestClass.INTERACTIVE, 0.0), 0.0)
    assert isinstance(refused, Refuse)
    assert refused.error.message == "unknown model 'n': it is not applied"


def test_the_earliest_first_token_goes_next_whenever_it_came() -> None:
    rig = Rig("a")
    rig.load("a", running=1)
    for name, ttft_ms, now in (("patient", 30_000, 0.0), ("none", 0, 1.0), ("urgent", 500, 2.0)):
        slo = types_pb2.Slo(ttft_ms=ttft_ms) if ttft_ms else types_pb2.Slo()
        assert rig.submit(name, now, slo=slo)[1] == []
    # One that has spent its time elsewhere is due earlier.
    spent = types_pb2.Slo(ttft_ms=30_000)
    assert rig.submit("spent", 2.0, slo=spent, elapsed_s=29.9)[1] == []
    order = []
    for _ in range(4):
        [(name, _)] = placed(rig.load("a", now=3.0, running=0))
        order.append(name)
        rig.load("a", now=3.0, running=1, started_request_ids=[name])
        rig.load("a", now=3.0, running=1, finished_request_ids=[name])
    assert order == ["spent", "urgent", "patient", "none"]


def test_who_has_starved_goes_before_the_earliest_deadline() -> None:
    rig = Rig("a")
    rig.load("a", running=1)
    assert rig.submit("old", 0.0)[1] == []
    assert rig.submit("urgent", 299.0, slo=types_pb2.Slo(ttft_ms=10))[1] == []
    assert placed(rig.load("a", now=300.0, running=0)) == [("old", "a")]


def test_an_interactive_request_gets_the_slot_of_batch_work_that_yields() -> None:
    rig = Rig("a", "b")
    busy = types_pb2.ClassCounts(batch=1)
    rig.load("a", running=1)
    rig.core.load("b", rig.watches["b"], load_of("b", running=busy, yielding=1), 0.0)
    _, out = rig.submit("urgent")
    [placed] = [each for each in out if isinstance(each, Place)]
    assert placed.placement.instance_id == "b"
    assert placed.placement.decision.reason.startswith(REASON)
    # It is on its way there: the next one finds nothing that yields.
    _, out = rig.submit("second")
    assert not out
    _, out = rig.submit("work", request_class=RequestClass.BATCH)
    assert not out


def load_of(key: str, **fields: object) -> worker_pb2.WatchLoadResponse:
    return worker_pb2.WatchLoadResponse(
        instance_id=key, incarnation=1, role=types_pb2.ROLE_MIXED, state=READY, batch_size=1, **fields
    )
