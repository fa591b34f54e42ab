"""Routers hear of a stop before the node does."""

from __future__ import annotations

import dataclasses

from chiron.store import Change, InstanceRecord, Snapshot
from services.global_controller import levels
from services.global_controller.notice import Notice
from tests.support.cluster_states import FAILED, LOADING, RUNNING, STOPPED, instance

LEAVES = dataclasses.replace(instance("i", "a", desired=STOPPED), generation=4)


def told(notice: Notice, *records: InstanceRecord) -> dict[str, tuple[int, int]]:
    there = levels.NodeIndex().of(Snapshot().after(Change(1, records))).get("a", ())
    return {one.instance_id: (one.desired, one.generation) for one in levels.told(there, notice)}


def test_the_node_is_told_once_the_notice_is_over() -> None:
    notice = Notice(2.0)
    notice.update([LEAVES], 100.0, routers=True)
    assert notice.due == 102.0
    assert told(notice, LEAVES) == {"i": (RUNNING, 3)}, "as before the stop"
    notice.update([LEAVES], 101.9, routers=True)
    assert notice.due == 102.0
    notice.update([LEAVES], 102.0, routers=True)
    assert notice.due is None
    assert told(notice, LEAVES) == {"i": (STOPPED, 4)}
    notice.update([LEAVES], 150.0, routers=True)
    assert notice.held == frozenset()


def test_what_nobody_can_be_sending_to_is_told_at_once() -> None:
    notice = Notice(2.0)
    records = [instance("i", "a", desired=STOPPED, state=state) for state in (LOADING, FAILED)]
    for record in (*records, instance("i", "a")):
        notice.update([record], 100.0, routers=True)
        assert notice.held == frozenset()
    notice.update([LEAVES], 100.0, routers=False)
    assert told(notice, LEAVES) == {"i": (STOPPED, 4)}


def test_each_has_its_own_time_and_is_forgotten_when_it_has_gone() -> None:
    notice, other = Notice(2.0), dataclasses.replace(LEAVES, instance_id="j")
    notice.update([LEAVES], 100.0, routers=True)
    notice.update([LEAVES, other], 101.0, routers=True)
    assert (notice.held, notice.due) == ({"i", "j"}, 102.0)
    notice.update([LEAVES, other], 102.5, routers=True)
    assert (notice.held, notice.due) == ({"j"}, 103.0)
    notice.update([], 102.6, routers=True)
    notice.update([other], 104.0, routers=True)
    assert notice.due == 106.0


def test_what_an_earlier_leader_has_told_is_not_taken_back() -> None:
    notice = Notice(2.0)
    notice.begin([LEAVES, instance("stays", "a")], 100.0)
    notice.update([LEAVES], 100.1, routers=True)
    assert told(notice, LEAVES) == {"i": (STOPPED, 4)}
    later = dataclasses.replace(LEAVES, instance_id="j")
    notice.update([LEAVES, later], 101.0, routers=True)
    assert notice.held == {"j"}


def test_a_stop_that_was_told_is_not_taken_back_when_its_node_reports_it_ready() -> None:
    notice = Notice(2.0)
    unheard = dataclasses.replace(instance("i", "a", desired=STOPPED, state=LOADING), generation=4)
    notice.update([unheard], 100.0, routers=True)
    assert told(notice, unheard) == {"i": (STOPPED, 4)}
    notice.update([LEAVES], 100.1, routers=True)
    assert told(notice, LEAVES) == {"i": (STOPPED, 4)}


def test_nor_when_the_first_router_comes() -> None:
    notice = Notice(2.0)
    notice.update([LEAVES], 100.0, routers=False)
    notice.update([LEAVES], 100.1, routers=True)
    assert told(notice, LEAVES) == {"i": (STOPPED, 4)}
