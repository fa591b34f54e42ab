"""What operators are told about the store."""

from __future__ import annotations

from chiron.store import UnavailableError
from chiron.store.etcd.members import Member
from services.global_controller.store_health import StoreHealth, StoreState, judge

WELL = Member("a:1", answers=True, knows_leader=True, leads=True, version="3.5.6", db_bytes=5_000_000)
OTHER = Member("b:2", answers=True, knows_leader=True)
SILENT = Member("c:3", answers=False, reason="Connection refused")


def test_all_members_answer() -> None:
    assert judge([WELL, OTHER]) == (StoreState.OK, "")


def test_a_member_that_does_not_answer_is_named_while_the_others_do() -> None:
    state, reason = judge([WELL, OTHER, SILENT])
    assert state is StoreState.DEGRADED
    assert reason == "1 of 3 members of etcd do not answer: c:3: Connection refused"


def test_a_minority_that_answers_has_no_leader() -> None:
    lonely = Member("a:1", answers=True)
    state, reason = judge([lonely, SILENT, SILENT])
    assert state is StoreState.UNAVAILABLE
    assert reason.startswith("etcd has no leader: 1 of 3 members answer (c:3: Connection refused")


def test_nobody_answers() -> None:
    assert judge([SILENT]) == (StoreState.UNAVAILABLE, "no member of etcd answers: c:3: Connection refused")


def test_a_used_up_quota_says_what_to_do() -> None:
    full = Member("b:2", answers=True, knows_leader=True, db_bytes=2_000_000_000, alarms=("NOSPACE",))
    state, reason = judge([WELL, full])
    assert state is StoreState.READ_ONLY
    assert "2000.0 MB" in reason
    assert "alarm disarm" in reason


def test_members_that_differ_are_worse_than_a_used_up_quota() -> None:
    broken = Member("b:2", answers=True, knows_leader=True, alarms=("NOSPACE", "CORRUPT"))
    state, reason = judge([broken])
    assert state is StoreState.READ_ONLY
    assert "CORRUPT" in reason


def test_a_failed_write_counts_until_one_succeeds_and_what_members_say_comes_first() -> None:
    now = 100.0
    health = StoreHealth("etcd", lambda: now)
    health.look([WELL])
    health.failed(UnavailableError("permission denied"))
    assert (health.state, health.reason, health.doubtful) == (
        StoreState.UNAVAILABLE,
        "permission denied",
        True,
    )
    now = 110.0
    assert health.age_s == 10.0
    health.look([SILENT])
    assert "no member" in health.reason
    assert not health.doubtful
    health.look([WELL])
    assert health.reason == "permission denied"
    health.worked()
    assert (health.state, health.reason, health.age_s) == (StoreState.OK, "", 0.0)


def test_listeners_hear_of_a_change_and_of_nothing_else() -> None:
    health = StoreHealth("etcd", lambda: 0.0)
    beats = [health.changed.count]
    for members in ([WELL], [WELL], [SILENT], [SILENT]):
        health.look(members)
        beats.append(health.changed.count)
    assert beats == [0, 0, 0, 1, 1]
