"""Demand reports cover their interval, once."""

from __future__ import annotations

import math

from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.backlog import Backlog
from services.router.demand import Demand
from services.router.queue import WaitingQueue
from services.router.request import PendingRequest

INTERACTIVE, BATCH = RequestClass.INTERACTIVE, RequestClass.BATCH


def queue(interactive: int = 0, batch: int = 0) -> WaitingQueue:
    filled = WaitingQueue(100)
    for kind, count in ((INTERACTIVE, interactive), (BATCH, batch)):
        for _ in range(count):
            filled.push(PendingRequest("r", "m", kind, arrived=0.0, prompt_tokens=10))
    return filled


def test_a_report_covers_what_happened_since_the_one_before() -> None:
    demand = Demand(now=10.0)
    counts = demand.of("m")
    counts.arrived.add(RequestClass.INTERACTIVE)
    counts.arrived.add(RequestClass.BATCH)
    counts.failed.add(RequestClass.BATCH)
    first = demand.report(1, {"m": queue(2, 3), "idle": queue()}, now=11.5)
    assert (first.sequence, first.interval_ms) == (1, 1500.0)
    assert [one.model for one in first.demand] == ["idle", "m"]
    of_m = first.demand[1]
    assert of_m.arrived == types_pb2.ClassCounts(interactive=1, batch=1)
    assert of_m.failed == types_pb2.ClassCounts(batch=1)
    assert of_m.queued == types_pb2.ClassCounts(interactive=2, batch=3)

    second = demand.report(2, {"m": queue()}, now=12.0)
    assert second.interval_ms == 500.0
    assert second.demand[0].arrived == types_pb2.ClassCounts()


def test_what_ends_after_a_report_is_in_the_next_one() -> None:
    demand = Demand(now=0.0)
    tally = demand.tally("m", RequestClass.INTERACTIVE)
    tally.arrived()
    [first] = demand.report(1, {}, now=1.0).demand
    tally.finished()
    [second] = demand.report(2, {}, now=2.0).demand
    one = types_pb2.ClassCounts(interactive=1)
    assert (first.arrived, first.finished) == (one, types_pb2.ClassCounts())
    assert (second.arrived, second.finished) == (types_pb2.ClassCounts(), one)


def test_a_report_that_could_not_be_sent_is_part_of_the_next_one() -> None:
    demand = Demand(now=10.0)
    for kind in (INTERACTIVE, BATCH):
        tally = demand.tally("m", kind)
        tally.arrived()
        tally.finished()
        tally.refused()
        tally.failed()
    demand.of("m").ttft_seen, demand.of("m").ttft_met = 2, 1
    unsent = demand.report(1, {"m": queue(batch=1)}, now=11.0)
    demand.take_back(unsent)
    demand.tally("m", BATCH).arrived()
    later = demand.report(1, {}, now=11.5)
    assert later.interval_ms == 1500.0
    [both] = later.demand
    one_each = types_pb2.ClassCounts(interactive=1, batch=1)
    assert both.arrived == types_pb2.ClassCounts(interactive=1, batch=2)
    assert (both.finished, both.refused, both.failed) == (one_each, one_each, one_each)
    assert (both.ttft_seen, both.ttft_met) == (2, 1)
    assert both.queued == types_pb2.ClassCounts(), "what waits is told as it is now"


def test_what_is_given_up_is_a_total_and_no_part_of_any_report() -> None:
    demand, silent = Demand(now=0.0), Demand(now=0.0)
    for one in (demand, silent):
        for kind in (INTERACTIVE, BATCH, BATCH):
            one.tally("m", kind, slo=True).arrived()
    for kind in (INTERACTIVE, BATCH, BATCH):
        demand.tally("m", kind, slo=True).cancelled()
    cancelled = {("m", "cancelled", "interactive"): 1, ("m", "cancelled", "batch"): 2}
    before = demand.totals()
    assert before == {**silent.totals(), **cancelled}
    report = demand.report(1, {}, now=1.0)
    assert report == silent.report(1, {}, now=1.0)
    assert demand.totals() == before
    demand.take_back(report)
    assert demand.totals() == before


def test_nothing_is_told_of_a_model_of_which_requests_were_only_given_up() -> None:
    demand = Demand(now=0.0)
    demand.tally("m", INTERACTIVE).cancelled()
    assert len(demand) == 0
    assert not demand.report(1, {}, now=1.0).demand


def batch_request(deadline: float | None, prompt_tokens: int) -> PendingRequest:
    return PendingRequest("r", "m", BATCH, 0.0, prompt_tokens=prompt_tokens, deadline=deadline)


def test_a_backlog_is_told_in_groups_of_similar_deadlines() -> None:
    waiting = [
        batch_request(None, 1),
        batch_request(7201.0, 2),
        batch_request(90.0, 4),
        batch_request(100.0, 8),
        batch_request(None, 16),
    ]
    backlog = Backlog()
    for request in waiting:
        backlog.add(request)
    due, later, endless = backlog.groups(95.0)
    assert (due.deadline_in_ms, due.requests, due.prompt_tokens) == (-5000.0, 2, 12)
    assert (later.deadline_in_ms, later.requests, later.prompt_tokens) == (7_106_000.0, 1, 2)
    assert not endless.HasField("deadline_in_ms")
    assert (endless.requests, endless.prompt_tokens) == (2, 17)
    for request in waiting:
        backlog.remove(request)
    assert backlog.groups(0.0) == []


def test_a_deadline_beyond_all_numbers_is_none() -> None:
    backlog = Backlog()
    endless = batch_request(math.inf, 8)
    backlog.add(endless)
    [group] = backlog.groups(0.0)
    assert not group.HasField("deadline_in_ms")
    backlog.remove(endless)
    assert backlog.groups(0.0) == []


def test_a_report_reads_groups_and_no_request() -> None:
    filled = WaitingQueue(100_000)

    class Counted(PendingRequest):
        """Counts how often its deadline is read."""

        reads = 0

        def __getattribute__(self, name: str) -> object:
            Counted.reads += name in ("deadline", "prompt_tokens")
            return super().__getattribute__(name)

    for number in range(1000):
        filled.push(Counted("r", "m", BATCH, 0.0, prompt_tokens=1, deadline=number % 50))
    before = Counted.reads
    assert before > 0
    [of_m] = Demand(now=0.0).report(1, {"m": filled}, now=1.0).demand
    assert [group.requests for group in of_m.batch_groups] == [1000]
    assert Counted.reads == before


def test_a_report_holds_the_groups_of_the_batch_requests_alone() -> None:
    [of_m] = Demand(now=0.0).report(1, {"m": queue(2, 3)}, now=1.0).demand
    assert [(group.requests, group.prompt_tokens) for group in of_m.batch_groups] == [(3, 30)]


def test_what_carried_an_slo_is_counted_apart_and_survives_a_report_that_was_not_sent() -> None:
    demand = Demand(now=0.0)
    for slo in (True, False):
        for kind in (INTERACTIVE, BATCH):
            tally = demand.tally("m", kind, slo=slo)
            tally.arrived()
            tally.refused()
            tally.refused(missed=False)
            tally.failed()
            tally.failed(missed=False)
    demand.tally("m", INTERACTIVE).left_late()
    demand.of("m").deadlines_met, demand.of("m").deadlines_missed = 4, 3
    unsent = demand.report(1, {}, now=1.0)
    demand.take_back(unsent)
    [told] = demand.report(2, {}, now=2.0).demand
    one_each = types_pb2.ClassCounts(interactive=1, batch=1)
    assert (told.slo_arrived, told.slo_refused, told.slo_failed) == (1, one_each, one_each)
    assert (told.slo_left, told.deadlines_met, told.deadlines_missed) == (1, 4, 3)
    assert told.refused == told.failed == types_pb2.ClassCounts(interactive=4, batch=4)
    assert demand.report(3, {}, now=3.0).demand == []


def test_totals_go_on_over_reports_and_over_those_that_could_not_be_sent() -> None:
    demand = Demand(now=0.0)
    tally = demand.tally("m", RequestClass.INTERACTIVE)
    tally.arrived()
    demand.of("m").ttft_seen += 1
    sent = demand.report(1, {}, now=1.0)
    tally.finished()
    before = {("m", "arrived", "interactive"): 1, ("m", "finished", "interactive"): 1}
    before["m", "ttft_missed", "interactive"] = 1
    assert demand.totals() == before
    demand.take_back(demand.report(2, {}, now=2.0))
    assert demand.totals() == before
    demand.take_back(sent)
    assert demand.totals() == before
    demand.tally("m", RequestClass.BATCH).failed()
    assert demand.totals()["m", "failed", "batch"] == 1
