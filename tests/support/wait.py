"""Waits for a condition instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support.patience import patience

T = TypeVar("T")


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, within_s: float = 15.0, what: str = ""
) -> T:
    """Returns the condition's first truthy value; fails with `what` when none comes in time.

    Args:
        condition: polled.
        within_s: how long to wait on an idle machine; a busy one is given more.
        what: for the failure; empty: the condition's source.
    """
    began = time.monotonic()
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        waited_s = time.monotonic() - began
        if waited_s > within_s and waited_s > within_s * patience():
            raise AssertionError(
                f"not within {waited_s:.1f} s: {what or inspect.getsource(condition).strip()}"
            )
        await asyncio.sleep(0.01)
