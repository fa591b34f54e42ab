"""The core keeps requests from instances that its own evidence speaks against."""

from __future__ import annotations

import pytest

from chiron.internal.v1 import control_pb2, worker_pb2
from chiron.policy.dispatch import LeastExpectedWait
from chiron.policy.words import RequestClass
from chiron.v1 import types_pb2
from services.router.core import CoreSettings, RouterCore
from services.router.health import EjectionSettings
from services.router.outcomes import Blame
from services.router.request import (
    Abandon,
    CloseWatch,
    Instruction,
    OpenWatch,
    PendingRequest,
    Place,
    Placement,
)

PAUSE_S, TTL_S = 1.0, 2.0
EJECTION = EjectionSettings(failures=2, first_s=4.0, longest_s=60.0, silence_s=2.0, full_pause_s=PAUSE_S)
BATCH, INTERACTIVE = RequestClass.BATCH, RequestClass.INTERACTIVE


class FixedJitter:
    """Stands in for random.Random."""

    def uniform(self, low: float, high: float) -> float:
        return 1.0


class Rig:
    """A core with a model `m` on instances that have reported once at 0."""

    def __init__(self, *names: str, worker_queue: int = 0, **load: object) -> None:
        settings = CoreSettings(100, worker_queue, PAUSE_S, TTL_S, EJECTION)
        self.core = RouterCore(settings, LeastExpectedWait(), FixedJitter())  # type: ignore[arg-type]
        self.watches: dict[str, int] = {}
        self.note(
            self.core.snapshot(
                control_pb2.RoutingTable(
                    epoch=1,
                    term=1,
                    models=[control_pb2.RoutedModel(name="m")],
                    instances=[
                        control_pb2.RoutedInstance(
                            instance_id=name, model="m", address=f"{name}:1", incarnation=1
                        )
                        for name in names
                    ],
                ),
                0.0,
            )
        )
        for name in names:
            self.load(name, 0.0, **load)

    def note(self, out: list[Instruction]) -> list[Instruction]:
        self.watches |= {one.instance_id: one.watch for one in out if isinstance(one, OpenWatch)}
        return out

    def load(self, name: str, now: float, **fields: object) -> list[Instruction]:
        told = {
            "instance_id": name,
            "incarnation": 1,
            "role": types_pb2.ROLE_MIXED,
            "state": types_pb2.INSTANCE_STATE_READY,
            "batch_size": 4,
            **fields,
        }
        load = worker_pb2.WatchLoadResponse(**told)  # type: ignore[arg-type]
        return self.note(self.core.load(name, self.watches[name], load, now))

    def place(self, name: str, now: float, kind: RequestClass = INTERACTIVE, **fields: object) -> Request:
        request = PendingRequest(name, "m", kind, now, **fields)  # type: ignore[arg-type]
        return Request(self, request, self.core.submit(request, now))

    def fill(self, *names: str, now: float) -> None:
        """They report that all their slots are taken."""
        for name in names:
            self.load(name, now, running=types_pb2.ClassCounts(interactive=4))

    def tick(self, now: float) -> list[Instruction]:
        return self.note(self.core.tick(now))

    def ejected(self, now: float) -> dict[str, str]:
        return {one.instance_id: one.reason for one in self.core.ejected(now)}


class Request:
    """A request and where it has been sent."""

    def __init__(self, rig: Rig, request: PendingRequest, out: list[Instruction]) -> None:
        self.rig, self.request = rig, request
        self.placement = self._mine(out)

    @property
    def at(self) -> str:
        return self.placement.instance_id if self.placement is not None else ""

    def failed(self, blame: Blame, now: float) -> list[Instruction]:
        assert self.placement is not None
        return self.rig.note(self.rig.core.failed(self.request, self.placement, blame, now))

    def answered(self, now: float) -> list[Instruction]:
        assert self.placement is not None
        return self.rig.core.answered(self.placement, now)

    def ended(self, now: float) -> list[Instruction]:
        assert self.placement is not None
        return self.rig.core.release(self.placement.reservation, now)

    def again(self, now: float) -> Request:
        return Request(self.rig, self.request, self.rig.core.submit(self.request, now))

    def _mine(self, out: list[Instruction]) -> Placement | None:
        found = [one.placement for one in out if isinstance(one, Place) and one.request is self.request]
        return found[0] if found else None


def names(out: list[Instruction]) -> list[tuple[str, str]]:
    return [(one.request.request_id, one.placement.instance_id) for one in out if isinstance(one, Place)]


def eject(rig: Rig, name: str, now: float) -> None:
    """Fails requests until the instance is ejected."""
    others = tuple(key for key in rig.watches if key != name)
    while name not in rig.ejected(now):
        request = rig.place("bad", now, excluded_ids=others)
        assert request.at == name
        request.failed(Blame.FAULT, now)
        request.ended(now)


def test_failures_in_a_row_take_requests_away_until_one_on_trial_is_answered() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    assert rig.ejected(10.0) == {"a": "2 failures in a row"}
    assert {rig.place(f"r{i}", 10.0).at for i in range(8)} == {"b", "c"}
    rig.fill("b", "c", now=10.5)
    trial, second = rig.place("trial", 10.5), rig.place("second", 10.5)
    assert (trial.at, second.at) == ("", "")
    rig.tick(12.5)
    assert rig.core.next_tick == 14.0
    assert names(rig.tick(14.0)) == [("trial", "a")]


def test_one_request_at_a_time_is_on_trial() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    rig.fill("b", "c", now=14.0)
    trial, second, third = (rig.place(name, 14.0) for name in ("trial", "second", "third"))
    assert (trial.at, second.at, third.at) == ("a", "", "")
    # It ends without having shown anything: its caller has left.
    assert names(trial.ended(14.1)) == [("second", "a")]


def test_an_answer_on_trial_lets_everyone_in_again() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    rig.fill("b", "c", now=14.0)
    trial, *_ = [rig.place(name, 14.0) for name in ("trial", "second", "third")]
    assert names(trial.answered(14.5)) == [("second", "a"), ("third", "a")]
    assert rig.ejected(14.5) == {}


def test_a_failure_on_trial_ejects_again_for_twice_as_long() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    trial = rig.place("trial", 14.0, excluded_ids=("b", "c"))
    assert trial.at == "a"
    trial.failed(Blame.FAULT, 14.0)
    trial.ended(14.0)
    waits = rig.place("waits", 14.0, excluded_ids=("b", "c"))
    assert waits.at != "a"
    assert [one.retry_in_ms for one in rig.core.ejected(14.0)] == [8000.0]


def test_the_ticket_on_trial_counts_as_answered_when_the_worker_has_the_request() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    trial = rig.place("trial", 14.0, excluded_ids=("b", "c"), lookaside=True)
    assert trial.at == "a"
    assert rig.ejected(14.0) == {"a": "2 failures in a row"}
    rig.load("a", 14.1, started_request_ids=["trial"])
    assert rig.ejected(14.1) == {}


def test_a_ticket_on_trial_that_lapses_makes_room_for_another() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    rig.fill("b", "c", now=14.0)
    assert rig.place("unused", 14.0, lookaside=True).at == "a"
    assert rig.place("next", 14.5).at == ""
    assert names(rig.tick(14.0 + TTL_S)) == [("next", "a")]


def test_where_most_are_ejected_all_are_used() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    assert rig.place("r", 10.0).at in ("b", "c")
    eject(rig, "b", 10.0)
    assert {rig.place(f"r{i}", 10.0).at for i in range(11)} == {"a", "b", "c"}


def test_the_last_instance_is_never_ejected_into_an_outage() -> None:
    rig = Rig("a")
    eject(rig, "a", 10.0)
    answers = [rig.place(f"r{i}", 10.0) for i in range(4)]
    assert [one.at for one in answers] == ["a"] * 4
    answers[0].answered(10.1)
    assert rig.ejected(10.1) == {}


def test_only_instances_that_take_the_class_count_for_the_panic() -> None:
    rig = Rig("a", "b", "c")
    for name in ("b", "c"):
        rig.load(name, 0.0, role=types_pb2.ROLE_BATCH, batch_credits=4, batch_credit_ttl_ms=60_000)
    eject(rig, "a", 10.0)
    assert rig.place("r", 10.0).at == "a"


def test_another_incarnation_starts_with_a_clean_slate() -> None:
    rig = Rig("a", "b", "c")
    eject(rig, "a", 10.0)
    rig.load("a", 10.5, incarnation=2)
    assert rig.ejected(10.5) == {}


def test_refusals_are_no_failures() -> None:
    rig = Rig("a", "b")
    for i in range(10):
        request = rig.place(f"r{i}", 10.0 + 2 * i, excluded_ids=("b",))
        assert request.at == "a"
        request.failed(Blame.NONE if i % 2 else Blame.FULL, 10.0 + 2 * i)
        request.ended(10.0 + 2 * i)
    assert rig.ejected(40.0) == {}


def test_a_full_instance_gets_nothing_until_it_reports() -> None:
    rig = Rig("a")
    first = rig.place("first", 10.0)
    first.failed(Blame.FULL, 10.0)
    assert first.again(10.0).at == ""
    assert rig.place("second", 10.1).at == ""
    assert names(rig.load("a", 10.2)) == [("first", "a"), ("second", "a")]


def test_a_full_instance_that_reports_nothing_is_tried_again_after_the_pause() -> None:
    rig = Rig("a")
    first = rig.place("first", 10.0)
    first.failed(Blame.FULL, 10.0)
    assert first.again(10.0).at == ""
    assert rig.core.next_tick == 10.0 + PAUSE_S
    assert names(rig.tick(10.0 + PAUSE_S)) == [("first", "a")]


def test_another_instance_takes_at_once_what_a_full_one_refused() -> None:
    rig = Rig("a", "b")
    first = rig.place("first", 10.0)
    first.failed(Blame.FULL, 10.0)
    assert first.again(10.0).at == "b"


def test_a_worker_that_falls_silent_is_given_up_and_its_work_goes_elsewhere() -> None:
    rig = Rig("a", "b", heartbeat_ms=500)
    rig.load("b", 1.0, heartbeat_ms=500)
    assert rig.core.next_tick == 2.5
    assert rig.tick(2.4) == []
    assert rig.tick(2.5) == [Abandon("a", begun=True), CloseWatch("a"), OpenWatch("a", "a:1", 3)]
    assert rig.ejected(2.5) == {"a": "silent for 2.5 s"}
    assert rig.place("r", 2.5).at == "b"
    # b's turn comes 2.5 s after its own last word.
    assert rig.core.next_tick == 3.5


def test_what_has_begun_is_left_alone_where_nobody_else_could_go_on() -> None:
    rig = Rig("a", "b", heartbeat_ms=500)
    assert [one for one in rig.tick(2.5) if isinstance(one, Abandon)] == [Abandon("a"), Abandon("b")]


def test_reports_keep_the_silence_away() -> None:
    rig = Rig("a", heartbeat_ms=500)
    for step in range(1, 20):
        rig.load("a", 0.5 * step, heartbeat_ms=500)
        due = rig.core.next_tick
        assert due is not None
        if due <= 0.5 * step:
            assert rig.tick(0.5 * step) == []
    assert rig.ejected(9.5) == {}


def test_a_worker_that_promises_no_heartbeat_may_be_silent() -> None:
    rig = Rig("a")
    assert rig.core.next_tick is None
    assert rig.tick(1000.0) == []
    assert rig.ejected(1000.0) == {}


def test_a_router_that_stood_still_gives_the_workers_one_more_heartbeat() -> None:
    rig = Rig("a", heartbeat_ms=500)
    assert rig.tick(60.0) == []
    assert rig.core.next_tick == 60.5
    assert rig.tick(60.5) == [Abandon("a"), CloseWatch("a"), OpenWatch("a", "a:1", 2)]


def test_a_silent_worker_that_is_heard_again_gets_one_request_first() -> None:
    rig = Rig("a", "b", heartbeat_ms=500)
    rig.load("b", 2.0, heartbeat_ms=500)
    rig.tick(2.5)
    rig.load("a", 3.0, heartbeat_ms=500)
    placed = [rig.place(f"r{i}", 3.0) for i in range(6)]
    assert [one.at for one in placed].count("a") == 1
    [trial] = [one for one in placed if one.at == "a"]
    assert names(trial.answered(3.1)) == [("r5", "a")]


def test_an_instance_that_cannot_be_reached_is_shown_so() -> None:
    rig = Rig("a")
    rig.core.delta(
        control_pb2.RoutingDelta(
            epoch=2, instances=[control_pb2.RoutedInstance(instance_id="x", model="m", address="x:1")]
        ),
        1.0,
    )
    rig.core.watch_lost("x", 2, 1.0)
    assert rig.ejected(1.0) == {"x": "cannot be reached"}


def credits(number: int) -> dict[str, object]:
    return {"batch_credits": number, "batch_credit_ttl_ms": 2000}


def test_batch_requests_need_a_credit_interactive_ones_do_not() -> None:
    rig = Rig("a")
    assert rig.place("batch", 0.0, BATCH).at == ""
    assert rig.place("interactive", 0.0).at == "a"
    assert names(rig.load("a", 0.1, **credits(1))) == [("batch", "a")]


def test_a_credit_is_good_for_one_request_until_the_next_report() -> None:
    rig = Rig("a", **credits(2))
    assert [rig.place(f"r{i}", 0.0, BATCH).at for i in range(3)] == ["a", "a", ""]
    # The worker has not seen the two yet: its word that there are two places is about them.
    assert names(rig.load("a", 0.1, **credits(2))) == []
    assert names(rig.load("a", 0.2, started_request_ids=["r0"], **credits(1))) == []
    assert names(rig.load("a", 0.3, started_request_ids=["r1"], **credits(1))) == [("r2", "a")]


def test_a_credit_that_was_not_used_is_there_for_the_next_request() -> None:
    rig = Rig("a", **credits(1))
    first, second = rig.place("first", 0.0, BATCH), rig.place("second", 0.0, BATCH)
    assert (first.at, second.at) == ("a", "")
    assert names(first.ended(0.1)) == [("second", "a")]


def test_credits_lapse_two_seconds_after_the_report() -> None:
    rig = Rig("a", **credits(4))
    assert rig.place("in time", 1.99, BATCH).at == "a"
    assert rig.place("late", 2.0, BATCH).at == ""
    assert names(rig.load("a", 2.5, **credits(4))) == [("late", "a")]


@pytest.mark.parametrize(("told", "waiting"), [(None, 2), (0, 0), (1, 1), (9, 2)])
def test_the_worker_says_how_many_may_wait_at_it(told: int | None, waiting: int) -> None:
    rig = Rig("a", worker_queue=2, **({} if told is None else {"max_waiting": told}))
    assert [rig.place(f"r{i}", 0.0).at for i in range(8)].count("a") == 4 + waiting
