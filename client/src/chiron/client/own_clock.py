"""A request's time limit by the clock of its own event loop, for when gRPC tells of none."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from chiron.client.errors import DeadlineExceeded

_GRACE_S = 1.0
"""How long gRPC gets, once the limit has passed, to end the call itself, in seconds."""


class Cancellable(Protocol):
    """A call of grpc.aio."""

    def cancel(self) -> bool:
        """Ends the call on this side at once."""
        ...


class Listening:
    """Whether somebody waits for a call's next message, and since when."""

    __slots__ = ("_loop", "since")

    def __init__(self) -> None:
        """Somebody does from now on."""
        self._loop = asyncio.get_running_loop()
        self.since = self._loop.time()
        """By the loop's clock, in seconds; inf: nobody waits."""

    def heard(self) -> None:
        """A message has come; whoever takes it may take its time."""
        self.since = math.inf

    def waits(self) -> None:
        """The next one is waited for."""
        self.since = self._loop.time()


def silent(silence_s: float) -> str:
    """What a request is told of which nothing was heard for too long."""
    return f"nothing was heard for silence_s={silence_s:g}"


@contextmanager
def ends_in_time(
    call: Cancellable, limit_s: float | None, told: str, *, silence_s: float | None = None
) -> Iterator[Listening]:
    """Ends `call` soon after `limit_s` seconds where gRPC has not; None: no limit.

    gRPC keeps a call's deadline itself and tells of it the way it tells of answers: through the one queue
    that all of grpc.aio in a process shares, and the thread that reads it. If that stands still, as it does
    in a fork of a process with open channels, the deadline is never heard of. The seconds that gRPC gets on
    top begin when the loop runs again, so that a blocked loop takes what has come meanwhile.

    Without a limit the call ends once `silence_s` seconds have passed in which a message was waited for and
    none came, as told by what this yields; None: it may stay silent.

    Raises DeadlineExceeded, saying `told`.
    """
    loop = asyncio.get_running_loop()
    listening = Listening()
    if limit_s is None and silence_s is None:
        yield listening
        return
    overdue, ends = False, loop.time() + (limit_s or 0.0)

    def left_s() -> float:
        if limit_s is not None or silence_s is None:
            return ends - loop.time()
        return min(silence_s, listening.since + silence_s - loop.time())

    def wait() -> None:
        nonlocal timer
        left = left_s()
        timer = loop.call_later(left, wait) if left > 0 else loop.call_later(_GRACE_S, end)

    def end() -> None:
        nonlocal overdue
        if left_s() > 0:
            wait()
            return
        overdue = True
        call.cancel()

    timer = loop.call_later(left_s(), wait)
    try:
        yield listening
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if overdue and task is not None and not task.cancelling():
            raise DeadlineExceeded(told, reason="DEADLINE_EXCEEDED") from None
        raise
    finally:
        timer.cancel()
