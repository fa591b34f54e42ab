"""The worker's states and its subscribers."""

from __future__ import annotations

import asyncio

import pytest

from chiron.rpc.errors import ChironError, Reason
from services.worker.board import MOST_PENDING_IDS, Board
from services.worker.state import DRAINING, FAILED, LOADING, READY, SLEEPING, WorkerState

STATES = (LOADING, READY, SLEEPING, DRAINING, FAILED)


@pytest.mark.parametrize("path", [(READY, SLEEPING, READY, DRAINING, FAILED), (DRAINING,), (FAILED,)])
def test_ways_through_life(path: tuple[int, ...]) -> None:
    changes: list[int] = []
    state = WorkerState(lambda: changes.append(1))
    for target in path:
        state.move(target, "why")  # type: ignore[arg-type]
    assert (state.value, state.reason, len(changes)) == (path[-1], "why", len(path))


@pytest.mark.parametrize("end", [FAILED, DRAINING])
def test_failure_and_draining_are_not_undone(end: int) -> None:
    state = WorkerState(lambda: None)
    state.move(end)  # type: ignore[arg-type]
    for target in (LOADING, READY, SLEEPING):
        with pytest.raises(ChironError) as caught:
            state.move(target)
        assert caught.value.reason is Reason.BUSY


async def test_changes_that_come_together_are_told_once() -> None:
    board = Board()
    with board.subscribe(["early"]) as subscriber:
        for index in range(5):
            board.started(str(index))
        board.finished("early")
        board.finished("0", interrupted=True)
        assert await subscriber.news(0.0)
        assert subscriber.take() == (["early", "0", "1", "2", "3", "4"], ["early", "0"], ["0"])
        waiting = asyncio.create_task(subscriber.news(0.0))
        await asyncio.sleep(0)
        assert not waiting.done(), "there is nothing new"
        board.touch()
        assert await waiting
        assert subscriber.take() == ([], [], [])


async def test_a_closed_board_ends_every_subscription() -> None:
    board = Board()
    with board.subscribe([]) as subscriber:
        await subscriber.news(0.0)
        waiting = asyncio.create_task(subscriber.news(0.0))
        board.close()
        assert not await waiting
    with board.subscribe([]) as late:
        assert not await late.news(0.0)
        assert not await late.news_within(60.0)


async def test_what_a_subscriber_does_not_read_is_bounded() -> None:
    board = Board()
    with board.subscribe([]) as subscriber:
        for index in range(MOST_PENDING_IDS + 1):
            assert not subscriber.overrun
            board.started(str(index))
        assert subscriber.overrun
        board.started("one more")
        assert len(subscriber.started) <= MOST_PENDING_IDS + 1


def test_a_subscriber_hears_what_was_done_at_first_and_once_a_second() -> None:
    with Board().subscribe([]) as subscriber:
        asked = (10.0, 10.5, 10.99, 11.0, 11.5, 13.0, 13.1)
        assert [subscriber.wants_done(now) for now in asked] == [True, False, False, True, False, True, False]
