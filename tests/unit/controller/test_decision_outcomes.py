"""What comes of a decision, step by step, as its node reports."""

from __future__ import annotations

import dataclasses

import pytest

from chiron.internal.v1 import control_pb2
from chiron.store import DecisionRecord, InstanceRecord, Observed, Outcome
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.decisions.outcomes import (
    ASLEEP,
    LONGEST_WAIT_S,
    NOTHING_ELSE,
    ROLE,
    STARTED,
    STOPPED,
    WOKEN,
    Followed,
    Sight,
    kind_of,
)

LOADING, READY = types_pb2.INSTANCE_STATE_LOADING, types_pb2.INSTANCE_STATE_READY
OPEN, DONE = cluster_pb2.OUTCOME_STATE_OPEN, cluster_pb2.OUTCOME_STATE_DONE
FAILED, OVERTAKEN = cluster_pb2.OUTCOME_STATE_FAILED, cluster_pb2.OUTCOME_STATE_OVERTAKEN
PLACED = InstanceRecord("i", "m", "a", (0,), types_pb2.ROLE_MIXED, b"", 1)


def decision(kind: cluster_pb2.OutcomeKind.ValueType, **fields: object) -> DecisionRecord:
    base = DecisionRecord("d1", 0, 1, "place", "m", "i", "a", "because", generation=1, outcome=Outcome(kind))
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def follow(kind: cluster_pb2.OutcomeKind.ValueType, **fields: object) -> Followed:
    made = decision(kind, **fields)
    assert made.outcome is not None
    return Followed(made, made.outcome)


def at(
    after_s: float,
    state: types_pb2.InstanceState.ValueType,
    *,
    age_s: float = 0.0,
    running: int = 0,
    finished: int = 0,
    **fields: object,
) -> Sight:
    record = dataclasses.replace(PLACED, observed=Observed(state, fields.pop("reason", "")))  # type: ignore[arg-type]
    status = cluster_pb2.InstanceStatus(
        instance_id="i", generation=1, state=state, state_age_ms=age_s * 1e3, role=record.role
    )
    status.load.batch_size = 10
    status.load.running.interactive = running
    status.load.finished_interactive.requests = finished
    return Sight(after_s, record, status, **fields)  # type: ignore[arg-type]


def test_a_start_is_followed_from_the_command_to_the_first_request_and_whether_it_was_needed() -> None:
    followed = follow(STARTED, numbers={"theta": 0.8}, generation=1)
    assert not followed.sent(0, 0.4)
    assert followed.sent(1, 0.5)
    followed.see(at(2.0, LOADING, age_s=0.5))
    followed.see(at(9.0, READY, age_s=1.0, requests=3, other_slots=10))
    assert followed.watched_until_s == 16.0
    followed.see(at(9.5, READY, routed=True, requests=9, other_slots=10, running=4))
    followed.see(at(12.0, READY, requests=3, other_slots=10, running=7, finished=1))
    assert followed.outcome.state == OPEN
    assert followed.outcome.need is None
    assert followed.see(at(17.0, READY, requests=1, other_slots=10))
    outcome = followed.outcome
    assert outcome.state == DONE
    assert outcome.milestones == (
        ("sent", 0.5),
        ("received", 1.5),
        ("loading", 1.5),
        ("ready", 8.0),
        ("routed", 9.5),
        ("first_request", 9.5),
    )
    assert outcome.need is not None
    assert (outcome.need.needed, outcome.need.peak_use, outcome.need.peak_without) == (True, 0.7, 0.9)
    assert (outcome.need.limit, outcome.need.window_s) == (0.8, 8.0)


@pytest.mark.parametrize(
    ("requests", "other_slots", "numbers", "needed", "without"),
    [
        (10, 10, {}, False, 1.0),
        (11, 10, {}, True, 1.1),
        (8, 10, {"theta": 0.8}, False, 0.8),
        (9, 10, {"theta": 0.8}, True, 0.9),
        (1, 0, {}, True, NOTHING_ELSE),
        (0, 0, {}, False, 0.0),
    ],
)
def test_needed_is_what_the_others_had_no_slots_for(
    requests: int, other_slots: int, numbers: dict[str, float], needed: bool, without: float
) -> None:
    followed = follow(STARTED, numbers=numbers)
    for after_s in (1.0, 6.5):
        followed.see(at(after_s, READY, requests=requests, other_slots=other_slots))
    need = followed.outcome.need
    assert need is not None
    assert (need.needed, need.peak_without) == (needed, without)


def test_short_requests_between_reports_count_where_nobody_else_serves() -> None:
    followed = follow(STARTED)
    followed.see(at(1.0, READY))
    followed.see(at(6.5, READY, finished=2))
    assert followed.outcome.need is not None
    assert followed.outcome.need.needed


def test_an_instance_that_nobody_asks_is_done_in_the_end_and_says_so() -> None:
    followed = follow(STARTED)
    followed.see(at(1.0, READY))
    followed.see(at(300.0, READY))
    assert followed.outcome.state == OPEN
    followed.see(at(2.0 + LONGEST_WAIT_S, READY))
    assert (followed.outcome.state, followed.outcome.reason) == (DONE, "no request has come to it")


def test_a_failed_start_says_why() -> None:
    followed = follow(STARTED)
    followed.see(at(4.0, types_pb2.INSTANCE_STATE_FAILED, reason="out of memory"))
    assert (followed.outcome.state, followed.outcome.reason) == (FAILED, "out of memory")
    assert not followed.see(at(5.0, READY))


def test_a_stop_before_it_served_overtakes_a_start() -> None:
    followed = follow(STARTED)
    followed.see(at(2.0, LOADING))
    later = decision(STOPPED, decision_id="d2", action="stop", reason="one too many")
    assert followed.meet(later, 3.0)
    outcome = followed.outcome
    assert (outcome.state, outcome.reversed_by) == (OVERTAKEN, "d2")
    assert outcome.reason == "stop came before that: one too many"
    assert outcome.need is None


def test_a_stop_while_it_is_watched_leaves_the_verdict_on_what_was_seen() -> None:
    followed = follow(STARTED)
    followed.see(at(2.0, READY, requests=30, other_slots=10))
    followed.meet(decision(STOPPED, decision_id="d2", action="stop"), 4.0)
    assert followed.outcome.need is not None
    assert followed.outcome.need.needed
    assert followed.outcome.need.window_s == 2.0


def test_a_stop_is_followed_until_its_gpus_are_free() -> None:
    followed = follow(STOPPED, action="stop", generation=2)
    told = at(2.0, types_pb2.INSTANCE_STATE_DRAINING, load_time_s=20.0)
    assert told.status is not None
    told.status.generation = 2
    followed.see(told)
    followed.see(Sight(6.0, None, load_time_s=20.0))
    assert [name for name, _ in followed.outcome.milestones] == ["received", "draining", "stopped"]
    assert followed.outcome.state == OPEN
    followed.see(Sight(22.5, None, load_time_s=20.0))
    assert followed.outcome.state == DONE


@pytest.mark.parametrize(
    ("fields", "after_s", "reversed_"),
    [
        ({}, 9.0, True),
        ({}, 21.0, False),
        ({"model": "other"}, 9.0, False),
        ({"action": "replace"}, 9.0, False),
        ({"cause": "c"}, 9.0, False),
    ],
)
def test_a_start_of_the_model_within_a_load_time_reverses_a_stop_but_no_move_does(
    fields: dict[str, object], after_s: float, reversed_: bool
) -> None:
    followed = follow(STOPPED, action="stop", cause="c")
    followed.see(Sight(6.0, None, load_time_s=20.0))
    later = decision(STARTED, **({"decision_id": "d2", "instance_id": "j", "cause": "e"} | fields))
    assert followed.meet(later, after_s) is reversed_
    assert followed.outcome.reversed_by == ("d2" if reversed_ else "")
    followed.see(Sight(30.0, None, load_time_s=20.0))
    assert followed.outcome.state == DONE


def test_a_change_of_role_counts_once_the_worker_has_it() -> None:
    followed = follow(ROLE, generation=2)
    followed.see(at(1.0, READY))
    assert followed.outcome.after_s("applied") is None
    told = at(1.5, READY, load_time_s=5.0)
    assert told.status is not None
    told.status.generation = 2
    followed.see(told)
    assert followed.outcome.after_s("applied") == 1.5
    followed.meet(decision(ROLE, decision_id="d3", action="set_role"), 3.0)
    assert (followed.outcome.state, followed.outcome.reversed_by) == (OVERTAKEN, "d3")


def test_sleep_and_wake_are_followed_likewise() -> None:
    asleep = follow(ASLEEP)
    asleep.see(at(3.0, types_pb2.INSTANCE_STATE_SLEEPING, age_s=1.0, load_time_s=5.0))
    assert asleep.outcome.after_s("asleep") == 2.0
    asleep.see(at(5.5, types_pb2.INSTANCE_STATE_SLEEPING, load_time_s=5.0))
    assert asleep.outcome.state == DONE
    woken = follow(WOKEN)
    woken.see(at(1.0, READY, finished=40))
    # What it had answered before it slept is no first request.
    assert woken.outcome.after_s("first_request") is None
    woken.see(at(2.0, READY, finished=41))
    assert woken.outcome.after_s("first_request") == 2.0


def test_what_a_write_does_is_read_off_the_record() -> None:
    stopped = dataclasses.replace(PLACED, desired=control_pb2.DESIRED_STATE_STOPPED)
    sleeping = dataclasses.replace(PLACED, desired=control_pb2.DESIRED_STATE_SLEEPING)
    batch = dataclasses.replace(PLACED, role=types_pb2.ROLE_BATCH)
    assert kind_of(None, PLACED) == STARTED
    assert kind_of(PLACED, stopped) == STOPPED
    assert kind_of(PLACED, sleeping) == ASLEEP
    assert kind_of(sleeping, PLACED) == WOKEN
    assert kind_of(PLACED, batch) == ROLE
    assert kind_of(stopped, stopped) is None
    assert kind_of(PLACED, PLACED) is None
    assert kind_of(None, dataclasses.replace(PLACED, observed=Observed(READY))) is None


def test_no_milestone_lies_before_the_one_that_came_last() -> None:
    followed = follow(STARTED)
    followed.sent(1, 2.0)
    # Its agent's clock runs ahead: it loads for longer than it was asked for.
    followed.see(at(3.0, LOADING, age_s=5.0))
    assert followed.outcome.milestones == (("sent", 2.0), ("received", 2.0), ("loading", 2.0))
