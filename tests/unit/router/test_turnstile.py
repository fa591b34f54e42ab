"""Items of one claim begin a few in each round of the event loop, so that others run between them."""

from __future__ import annotations

import asyncio
from collections import Counter

from services.router.batch.turnstile import AT_ONCE, EACH, Turnstile


class Rounds:
    """Counts the rounds of the event loop, as somebody else who wants a turn in each."""

    def __init__(self) -> None:
        self.now = 0
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._count)

    def _count(self) -> None:
        self.now += 1
        self._next = self._loop.call_soon(self._count)

    def stop(self) -> None:
        self._next.cancel()


async def passed(*sizes: int, cancelled: frozenset[int] = frozenset()) -> list[tuple[int, int]]:
    """(item, round) in the order in which items that come at once have begun."""
    turnstile, rounds = Turnstile(), Rounds()
    begun: list[tuple[int, int]] = []

    async def item(number: int, size: int) -> None:
        await turnstile.enter(size)
        begun.append((number, rounds.now))

    tasks = [asyncio.create_task(item(number, size)) for number, size in enumerate(sizes)]
    await asyncio.sleep(0)
    for number in cancelled:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    rounds.stop()
    return begun


async def test_large_items_begin_one_in_a_round_in_their_order() -> None:
    begun = await passed(*[4 * AT_ONCE] * 50)
    assert [number for number, _ in begun] == list(range(50))
    assert max(Counter(when for _, when in begun).values()) == 1


async def test_small_items_begin_several_in_a_round() -> None:
    begun = await passed(*[100] * 512)
    assert [number for number, _ in begun] == list(range(512))
    each = Counter(when for _, when in begun)
    # Up to the one with which the round's share is used up.
    most = -(-AT_ONCE // (EACH + 100))
    assert max(each.values()) <= most
    assert len(each) <= 2 + 512 // most


async def test_those_who_come_when_nobody_waits_begin_at_once() -> None:
    turnstile, rounds = Turnstile(), Rounds()
    for _ in range(3):
        before = rounds.now
        await turnstile.enter(10 * AT_ONCE)
        assert rounds.now == before
        for _ in range(3):
            await asyncio.sleep(0)
    rounds.stop()


async def test_who_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    gone = frozenset(range(1, 40))
    begun = await passed(*[4 * AT_ONCE] * 42, cancelled=gone)
    assert [number for number, _ in begun] == [0, 40, 41]
