"""Keeps a cluster's services running, as a service manager would, and says when that has no point."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path

from chiron.cluster.process import ServiceProcess, StartError

SWEEPER = "sweeper"
MOST_RESTARTS = 5
RESTARTS_WITHIN_S = 60.0
"""A service that ends more often than so many times in so long a time is not started again."""


class RestartBudget:
    """How often a service may end before starting it again has no point. Pure; times are monotonic."""

    def __init__(self, most: int = MOST_RESTARTS, within_s: float = RESTARTS_WITHIN_S) -> None:
        self._within_s = within_s
        self._ends: deque[float] = deque(maxlen=most)

    def spend(self, now: float) -> bool:
        """It has ended now, in seconds: whether it may be started again."""
        full = len(self._ends) == self._ends.maxlen
        spent = full and (not self._ends or now - self._ends[0] < self._within_s)
        self._ends.append(now)
        return not spent


async def start_sweeper(directory: Path, environ: Mapping[str, str]) -> ServiceProcess:
    """What ends the workers of dead agents below the folder, should the cluster be killed; see sweeper.py."""
    return await ServiceProcess.start(
        SWEEPER,
        "chiron.cluster.sweeper",
        log=directory / "sweeper.log",
        settings={"directory": str(directory)},
        environ=environ,
    )


async def first_loss(
    services: Iterable[ServiceProcess],
    may_start_again: Callable[[ServiceProcess], bool],
    start_again: Callable[[str], Awaitable[ServiceProcess]],
    lost: Callable[[str], None] | None,
) -> str:
    """Starts again what may be, and returns which other service ended, and how.

    A controller may end while another one runs. `lost` is told of everything that the cluster survives.
    """
    tell = lost or (lambda _: None)
    # Without the sweeper there is all that a cluster needs.
    watched = [service for service in services if service.name != SWEEPER]
    waits = {asyncio.ensure_future(service.wait()): service for service in watched}
    try:
        while True:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            ended = done.pop()
            service = waits.pop(ended)
            how = f"{service.name} ended with status {ended.result()}"
            if may_start_again(service):
                try:
                    again = await start_again(service.name)
                except StartError as error:
                    return f"{how}, and it does not start again: {error}"
                waits[asyncio.ensure_future(again.wait())] = again
                tell(f"{how}; started again as pid {again.pid}")
                continue
            controllers = any(other.name.startswith("controller") for other in waits.values())
            if not controllers or not service.name.startswith("controller"):
                return f"{how}{service.tail()}"
            tell(f"{how}; another controller leads")
    finally:
        for task in waits:
            task.cancel()
