"""What is told of a batch's end: from the work before it, what serves, and lengths that were seen."""

from __future__ import annotations

import asyncio

import pytest

from chiron.batch.records import Batch, BatchCounts, BatchState, Unit
from chiron.v1 import batch_pb2 as pb
from services.router.batch.backlog import QueueBacklog
from services.router.batch.estimates import Estimates, Serving
from services.router.batch.settings import BatchSettings

NOTHING = Serving(0, 0, 0.0)
BUSY = Serving(instances=2, running=20, tokens_per_s=1000.0)


class Scene:
    """A queue, what serves, and a clock, all of the test's making."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now, raising=False)
        self.backlog = QueueBacklog(BatchSettings(), lambda _: 1.0)
        self.serving = BUSY
        self.estimates = Estimates(self.backlog, lambda _: self.serving, lambda _: 1.0)

    def waits(self, **queued: int) -> None:
        """Batch → items, all of one tenant, group and model."""
        self.backlog.take(
            Unit(("acme", name), "m", 1500.0, False, 0, 500.0 + number, items, 0, 0)
            for number, (name, items) in enumerate(queued.items())
        )
        self.estimates.read()

    def of(self, name: str, *, queued: int = 1, deadline: float = 1500.0):
        counts = BatchCounts(received=queued, queued=queued)
        batch = Batch(
            name, "acme", BatchState.ACTIVE, 0.0, deadline, False, False, 0, {}, 0, False, None, None, counts
        )
        return self.estimates.of(batch)

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.estimates._observe("m")


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


async def test_nothing_is_said_while_nothing_serves_or_was_seen(scene) -> None:
    scene.waits(b=100)
    assert scene.of("b") is None
    scene.pass_time(1)
    assert scene.of("b") is not None
    scene.serving = NOTHING
    assert scene.of("b") is None
    assert scene.of("unknown") is None


async def test_it_is_the_work_before_over_the_rate_and_one_item(scene) -> None:
    for _ in range(200_000):
        scene.estimates.learn("m", 100)
    scene.waits(first=1000, second=1000)
    scene.pass_time(60)
    first, second = scene.of("first"), scene.of("second")
    # 100,000 tokens each at 1000 a second; an item has 100 tokens, one in 20 ms.
    assert first.end - scene.now == pytest.approx(100 + 2, rel=0.02)
    assert second.end - scene.now == pytest.approx(200 + 2, rel=0.02)
    assert first.bad_end > first.end


async def test_no_item_counts_for_more_than_it_may_have(scene) -> None:
    scene.backlog.take([Unit(("acme", "b"), "m", 1500.0, False, 0, 0.0, 100, 0, 100 * 10)])
    scene.estimates.read()
    scene.pass_time(5)
    assert scene.of("b").end - scene.now < 20, "10 tokens each, though 256 are presumed"


async def test_the_outlook_follows_the_deadline(scene) -> None:
    for _ in range(200_000):
        scene.estimates.learn("m", 100)
    scene.waits(b=1000)
    scene.pass_time(60)
    estimate = scene.of("b")
    between = (estimate.end + estimate.bad_end) / 2
    assert scene.of("b", deadline=estimate.bad_end + 60).outlook == pb.DEADLINE_OUTLOOK_HOLDS
    scene.estimates._outlooks.clear()
    assert scene.of("b", deadline=between).outlook == pb.DEADLINE_OUTLOOK_AT_RISK
    scene.estimates._outlooks.clear()
    assert scene.of("b", deadline=estimate.end - 60).outlook == pb.DEADLINE_OUTLOOK_MISSES
    assert scene.of("b", deadline=scene.now - 1).outlook == pb.DEADLINE_OUTLOOK_MISSES


async def test_the_outlook_does_not_flap(scene) -> None:
    scene.waits(b=100)
    scene.pass_time(60)
    end = scene.of("b", deadline=1e9).end
    told = []
    for second in range(30):
        scene.now += 1.0
        told.append(scene.of("b", deadline=1e9 if second % 2 else end).outlook)
    assert set(told) == {pb.DEADLINE_OUTLOOK_HOLDS}
    for _ in range(11):
        scene.now += 1.0
        told.append(scene.of("b", deadline=scene.now + 0.1).outlook)
    assert told[-1] == pb.DEADLINE_OUTLOOK_MISSES


async def test_what_was_told_long_ago_binds_nobody(scene) -> None:
    scene.waits(b=100)
    scene.pass_time(60)
    assert scene.of("b", deadline=1e9).outlook == pb.DEADLINE_OUTLOOK_HOLDS
    scene.now += 61.0
    assert scene.of("b", deadline=scene.now + 0.1).outlook == pb.DEADLINE_OUTLOOK_MISSES


async def test_a_batch_of_which_everything_runs_has_one_item_to_go(scene) -> None:
    for _ in range(200_000):
        scene.estimates.learn("m", 100)
    scene.waits(b=5, other=50)
    scene.pass_time(60)
    scene.waits(other=50)
    estimate = scene.of("b")
    assert estimate.end - scene.now == pytest.approx(2.0, rel=0.05)
    progress = pb.BatchProgress()
    batch = Batch(
        "b",
        "acme",
        BatchState.ENDED,
        0.0,
        1500.0,
        False,
        False,
        0,
        {},
        0,
        False,
        1.0,
        2.0,
        BatchCounts(received=1, succeeded=1),
    )
    scene.estimates.describe(batch, progress)
    assert not progress.HasField("estimated_end"), "nothing is expected of one that has ended"
