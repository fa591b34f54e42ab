"""Waits for what announces itself to nobody: processes of others, and what a controller tells."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def until(
    condition: Callable[[], Awaitable[T | None]], within_s: float, *, every_s: float = 0.2
) -> T | None:
    """The condition's first truthy value; None when there is none in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        if value := await condition():
            return value
        if loop.time() >= deadline:
            return None
        await asyncio.sleep(every_s)
