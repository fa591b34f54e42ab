"""A request's time limit by the clock of its own event loop, for when gRPC tells of none."""

from __future__ import annotations

import asyncio
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


@contextmanager
def ends_in_time(call: Cancellable, limit_s: float | None, told: str) -> Iterator[None]:
    """Ends `call` soon after `limit_s` seconds where gRPC has not; None: no limit.

    gRPC keeps a call's deadline itself and tells of it the way it tells of answers: through the one queue
    that all of grpc.aio in a process shares, and the thread that reads it. If that stands still, as it does
    in a fork of a process with open channels, the deadline is never heard of. The seconds that gRPC gets on
    top begin when the loop runs again, so that a blocked loop takes what has come meanwhile.

    Raises DeadlineExceeded, saying `told`.
    """
    if limit_s is None:
        yield
        return
    overdue = False

    def end() -> None:
        nonlocal overdue
        overdue = True
        call.cancel()

    def wait() -> None:
        nonlocal timer
        timer = loop.call_later(_GRACE_S, end)

    loop = asyncio.get_running_loop()
    timer = loop.call_later(limit_s, wait)
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if overdue and task is not None and not task.cancelling():
            raise DeadlineExceeded(told, reason="DEADLINE_EXCEEDED") from None
        raise
    finally:
        timer.cancel()
