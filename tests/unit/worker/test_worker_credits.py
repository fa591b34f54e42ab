"""Batch credits: what a worker has to spare, shared out among those who subscribe."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chiron.v1 import types_pb2
from services.worker.board import Board
from services.worker.credits import spare

MIXED, BATCH, INTERACTIVE = types_pb2.ROLE_MIXED, types_pb2.ROLE_BATCH, types_pb2.ROLE_INTERACTIVE


@pytest.mark.parametrize(
    ("role", "taken", "max_waiting", "expected"),
    [
        (MIXED, 0, 256, 8),
        (MIXED, 5, 256, 3),
        (MIXED, 8, 256, 0),
        (MIXED, 20, 256, 0),
        # A batch instance is kept busy: a few may wait there, where any may.
        (BATCH, 5, 256, 5),
        (BATCH, 8, 1, 1),
        (BATCH, 8, 0, 0),
        (INTERACTIVE, 0, 256, 0),
    ],
)
def test_spare_slots_by_role(
    role: types_pb2.Role.ValueType, taken: int, max_waiting: int, expected: int
) -> None:
    assert spare(role, ready=True, batch_size=8, taken=taken, max_waiting=max_waiting) == expected


def test_a_worker_that_takes_nothing_spares_nothing() -> None:
    assert spare(BATCH, ready=False, batch_size=8, taken=0, max_waiting=8) == 0


@given(total=st.integers(0, 100), turn=st.integers(0, 1000), count=st.integers(1, 7))
def test_the_parts_add_up_and_are_even(total: int, turn: int, count: int) -> None:
    board = Board()
    with ExitStack() as stack:
        subscribers = [stack.enter_context(board.subscribe([], f"router-{i}")) for i in range(count)]
        parts = [board.share(one, total, turn) for one in subscribers]
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1


def test_everyone_has_the_odd_one_in_turn() -> None:
    board = Board()
    with board.subscribe([], "a") as a, board.subscribe([], "b") as b, board.subscribe([], "c") as c:
        had = {turn: [board.share(one, 1, turn) for one in (a, b, c)].index(1) for turn in range(3)}
    assert sorted(had.values()) == [0, 1, 2]


def test_a_router_that_subscribes_again_has_one_part() -> None:
    board = Board()
    with board.subscribe([], "a") as broken, board.subscribe([], "b") as b, board.subscribe([], "a") as again:
        assert [board.share(one, 4, 0) for one in (broken, b, again)] == [0, 2, 2]


def test_who_goes_leaves_its_part_to_the_others() -> None:
    board = Board()
    with board.subscribe([], "a") as a:
        with board.subscribe([], "b"):
            assert board.share(a, 4, 0) == 2
        assert board.share(a, 4, 0) == 4


def test_who_only_watches_takes_no_part() -> None:
    board = Board()
    with board.subscribe([]) as watcher, board.subscribe([], "a") as a:
        assert [board.share(one, 4, 0) for one in (watcher, a)] == [0, 4]


async def test_the_others_hear_at_once_that_the_parts_have_changed() -> None:
    board = Board()
    with board.subscribe([], "a") as a:
        await a.news(0.0)
        with board.subscribe([], "b"):
            # Without a change it would never return.
            assert await a.news(0.0)
        assert await a.news(0.0)


async def test_without_news_the_heartbeat_comes() -> None:
    with Board().subscribe([], "a") as a:
        await a.news(0.0)
        assert await a.news(0.0, within_s=0.01)


@pytest.mark.parametrize("role", [MIXED, BATCH])
def test_no_credit_while_interactive_or_preempted_work_waits(role: types_pb2.Role.ValueType) -> None:
    figures = {"ready": True, "batch_size": 8, "taken": 2, "max_waiting": 256}
    assert spare(role, **figures, held_up=False) >= 6
    assert spare(role, **figures, held_up=True) == 0
