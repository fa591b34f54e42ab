"""What a watcher that is slow hears of changes, and how much of it is kept."""

from __future__ import annotations

import asyncio

from chiron.batch import changes
from chiron.batch.changes import Changes


async def test_changes_are_merged_until_they_are_too_many() -> None:
    hub = Changes()
    watcher = hub.watch()
    assert await anext(watcher) == frozenset()
    hub.tell({("a", "1")})
    hub.tell({("a", "1"), ("b", "2")})
    assert await anext(watcher) == {("a", "1"), ("b", "2")}
    for number in range(changes.MERGED + 1):
        hub.tell({("a", str(number))})
    hub.tell({("c", "3")})
    assert await anext(watcher) == frozenset()
    hub.tell({("c", "4")})
    assert await anext(watcher) == {("c", "4")}


async def test_a_watcher_that_is_closed_is_forgotten() -> None:
    hub = Changes()
    watcher = hub.watch()
    await anext(watcher)
    await watcher.aclose()
    hub.tell({("a", "1")})
    assert not hub._watchers


async def test_nobody_waits_for_a_hub_that_is_closed() -> None:
    hub = Changes()
    watcher = hub.watch()
    await anext(watcher)
    waiting = asyncio.ensure_future(anext(watcher, None))
    await asyncio.sleep(0)
    hub.close()
    assert await waiting is None
