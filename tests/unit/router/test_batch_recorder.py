"""Ends of items are written in groups, again until the queue has them, and counted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chiron.batch.contract import SessionLostError, UnavailableError
from chiron.batch.records import ItemState, Lease, Outcome, Return, Session
from services.router.batch import recorder as recorder_module
from services.router.batch.recorder import Recorder

SESSION = Session(1, "r", 10.0)


class ScriptedQueue:
    """Records what is written; `fails` are raised first, one for each call."""

    def __init__(self) -> None:
        self.written: list[tuple[str, list[Any]]] = []
        self.fails: list[Exception] = []
        self.lost: set[Lease] = set()
        self.gate = asyncio.Event()
        self.gate.set()

    async def _write(self, kind: str, leases: list[Lease], what: list[Any]) -> list[Lease]:
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)
        self.written.append((kind, what))
        return [lease for lease in leases if lease in self.lost]

    async def finish(self, session: Session, outcomes: list[Outcome]) -> list[Lease]:
        return await self._write("finish", [one.lease for one in outcomes], list(outcomes))

    async def put_back(self, session: Session, returns: list[Return]) -> list[Lease]:
        return await self._write("put_back", [one.lease for one in returns], list(returns))

    async def checkpoint(self, session: Session, states: list[tuple[Lease, bytes]]) -> list[Lease]:
        return await self._write("checkpoint", [lease for lease, _ in states], list(states))


class Scene:
    def __init__(self) -> None:
        self.queue = ScriptedQueue()
        self.recorded: list[int] = []
        self.lost_sessions: list[Session] = []
        self.lost_leases: list[Lease] = []
        self.reached = 0
        self.recorder = Recorder(
            self.queue,  # type: ignore[arg-type]
            on_recorded=lambda outcome, model, deadline: self.recorded.append(outcome.lease.index),
            on_lost=self.lost_sessions.append,
            on_lease_lost=self.lost_leases.append,
            on_reached=self.again,
        )

    def again(self) -> None:
        self.reached += 1

    def kinds(self) -> list[tuple[str, int]]:
        return [(kind, len(what)) for kind, what in self.queue.written]


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(recorder_module, "_FIRST_PAUSE_S", 0.001)
    scene = Scene()
    task = asyncio.create_task(scene.recorder.run())
    yield scene
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def lease(index: int, fence: int = 1) -> Lease:
    return Lease(("acme", "b"), index, fence)


def done(index: int) -> Outcome:
    return Outcome(lease(index), ItemState.SUCCEEDED, b"result")


async def test_what_comes_while_a_write_is_under_way_shares_the_next_one(scene) -> None:
    scene.queue.gate.clear()
    scene.recorder.finish(SESSION, done(0), "m", 0.0)
    await asyncio.sleep(0)
    for index in range(1, 10):
        scene.recorder.finish(SESSION, done(index), "m", 0.0)
    scene.queue.gate.set()
    await scene.recorder.flushed()
    assert scene.recorded == list(range(10))
    assert len(scene.kinds()) <= 2


async def test_only_the_newest_checkpoint_is_written_and_none_of_an_item_that_has_ended(scene) -> None:
    scene.queue.gate.clear()
    scene.recorder.finish(SESSION, done(9), "m", 0.0)
    await asyncio.sleep(0)
    for state in (b"1", b"2"):
        scene.recorder.checkpoint(SESSION, lease(0), state)
        scene.recorder.checkpoint(SESSION, lease(1), state)
        scene.recorder.checkpoint(SESSION, lease(2), state)
    scene.recorder.finish(SESSION, done(1), "m", 0.0)
    scene.recorder.put_back(SESSION, Return(lease(2)))
    scene.queue.gate.set()
    await scene.recorder.flushed()
    assert scene.queue.written[-1] == ("checkpoint", [(lease(0), b"2")])


async def test_nothing_is_lost_or_counted_twice_while_the_queue_is_away(scene) -> None:
    scene.queue.fails = [UnavailableError("away"), UnavailableError("away", uncertain=True)]
    for index in range(3):
        scene.recorder.finish(SESSION, done(index), "m", 0.0)
    scene.recorder.put_back(SESSION, Return(lease(7)))
    await scene.recorder.flushed()
    assert scene.recorder.reached
    assert (scene.recorded, scene.reached) == ([0, 1, 2], 1)
    assert scene.kinds() == [("finish", 3), ("put_back", 1)]


async def test_leases_that_count_no_more_are_told_and_not_recorded(scene) -> None:
    scene.queue.lost = {lease(1), lease(5)}
    for index in range(3):
        scene.recorder.finish(SESSION, done(index), "m", 0.0)
    scene.recorder.checkpoint(SESSION, lease(5), b"state")
    await scene.recorder.flushed()
    assert scene.recorded == [0, 2]
    assert scene.lost_leases == [lease(1), lease(5)]


async def test_a_lost_session_leaves_results_alone_to_be_written(scene) -> None:
    scene.queue.gate.clear()
    scene.recorder.put_back(SESSION, Return(lease(0)))
    await asyncio.sleep(0)
    scene.recorder.checkpoint(SESSION, lease(1), b"state")
    scene.recorder.finish(SESSION, done(2), "m", 0.0)
    scene.queue.fails = [SessionLostError("lapsed")]
    scene.queue.gate.set()
    await scene.recorder.flushed()
    assert scene.lost_sessions == [SESSION]
    assert scene.recorded == [2]
    assert scene.kinds() == [("finish", 1)]


async def test_a_transaction_is_bounded(scene) -> None:
    scene.queue.gate.clear()
    for index in range(600):
        scene.recorder.finish(SESSION, done(index), "m", 0.0)
    scene.queue.gate.set()
    await scene.recorder.flushed()
    assert scene.recorded == list(range(600))
    assert max(size for _, size in scene.kinds()) <= 256
