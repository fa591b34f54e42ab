"""When a call is ended by its client's own clock; time passes as soon as everybody waits."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable

import pytest

from chiron.client import DeadlineExceeded
from chiron.client.own_clock import ends_in_time

GRACE_S = 1.0


class _Skipping(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def skipping(work: Callable[[], Awaitable[None]]) -> float:
    """Runs it on a loop whose time is that of its timers; returns how much has passed, in seconds."""
    selector = _Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(asyncio.wait_for(work(), None))
    finally:
        loop.close()
    return selector.now


async def ended(work: Awaitable[None]) -> None:
    """Awaits what a client's own clock ends."""
    with pytest.raises(DeadlineExceeded, match="told"):
        await work


class FakeCall:
    """Answers by `answer`, as long as it is not cancelled."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def cancel(self) -> bool:
        return self.answer.cancel()


def test_a_call_without_a_limit_ends_when_nothing_was_heard_for_so_long() -> None:
    async def ask() -> None:
        call = FakeCall()
        with pytest.raises(DeadlineExceeded, match="told"), ends_in_time(call, None, "told", silence_s=900.0):
            await call.answer

    assert skipping(ask) == pytest.approx(900.0 + GRACE_S)


def test_a_stream_goes_on_for_as_long_as_something_is_heard() -> None:
    async def read() -> None:
        call = FakeCall()
        with ends_in_time(call, None, "told", silence_s=10.0) as listening:
            for _ in range(100):
                await asyncio.sleep(9.0)
                listening.heard()
                listening.waits()
            await call.answer

    assert skipping(lambda: ended(read())) == pytest.approx(100 * 9.0 + 10.0 + GRACE_S)


def test_a_message_in_the_last_second_keeps_the_call() -> None:
    async def read() -> None:
        call = FakeCall()
        with ends_in_time(call, None, "told", silence_s=10.0) as listening:
            await asyncio.sleep(10.0 + GRACE_S / 2)
            listening.waits()
            await asyncio.sleep(9.0)
        assert not call.answer.cancelled()

    skipping(read)


def test_a_reader_who_takes_its_time_is_no_silence() -> None:
    async def read() -> None:
        call = FakeCall()
        with ends_in_time(call, None, "told", silence_s=10.0) as listening:
            listening.heard()
            await asyncio.sleep(3600.0)
            listening.waits()
            await call.answer

    # The clock looks at most once in ten seconds whether somebody waits again.
    assert 3610.0 + GRACE_S <= skipping(lambda: ended(read())) <= 3620.0 + GRACE_S


def test_where_there_is_a_limit_it_alone_counts() -> None:
    async def ask() -> None:
        call = FakeCall()
        with pytest.raises(DeadlineExceeded, match="told"), ends_in_time(call, 60.0, "told", silence_s=10.0):
            await call.answer

    assert skipping(ask) == pytest.approx(60.0 + GRACE_S)


def test_without_either_a_call_may_stay_silent() -> None:
    async def ask() -> None:
        call = FakeCall()
        asyncio.get_running_loop().call_later(1e6, call.answer.set_result, "late")
        with ends_in_time(call, None, ""):
            assert await call.answer == "late"

    assert skipping(ask) == pytest.approx(1e6)
