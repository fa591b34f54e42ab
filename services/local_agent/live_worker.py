"""A worker that runs: its processes, its control socket, and the tasks that follow both."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from chiron.internal.v1 import worker_pb2
from services.local_agent.launch import bound_log, log_tail
from services.local_agent.process import WorkerProcess
from services.local_agent.ticket_keys import TicketKeys
from services.local_agent.worker_link import WorkerLink

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_LOG_CHECK_S = 10.0
_FROM_OUTSIDE = frozenset({"killed by SIGKILL", "killed by SIGTERM"})


def is_from_outside(how: str) -> bool:
    """Whether a worker that ended like this was killed by somebody: it wrote nothing about it."""
    return how in _FROM_OUTSIDE


class Interrupted(Exception):
    """The worker exited, or something else is wanted at once, before a command was answered."""


class LiveWorker:
    """One incarnation from its start until every process of it is gone."""

    def __init__(
        self,
        process: WorkerProcess,
        link: WorkerLink,
        log: Path,
        *,
        log_bytes: int,
        statistics_interval_ms: int,
        keys: TicketKeys,
        on_statistics: Callable[[worker_pb2.WatchStatisticsResponse], None],
        on_exit: Callable[[str], None],
    ) -> None:
        """Starts to follow the worker; `on_exit` gets how its leader ended and its last words in the log."""
        self.process = process
        self.link = link
        self._log = log
        self._on_exit = on_exit
        self._watch = asyncio.create_task(link.watch(statistics_interval_ms, on_statistics))
        self._keys = asyncio.create_task(link.give_keys(keys))
        self._exit = asyncio.create_task(self._follow_exit())
        self._log_check = asyncio.create_task(self._bound_log(log_bytes))

    async def unless_interrupted(self, command: Awaitable[T], *events: asyncio.Event) -> T:
        """The command's answer. Raises Interrupted where the worker exits or an event is set first."""
        task = asyncio.ensure_future(command)
        others = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait({task, self._exit, *others}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Interrupted
            return task.result()
        finally:
            for one in (task, *others):
                one.cancel()
            await asyncio.gather(task, *others, return_exceptions=True)

    async def stop(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Ends every process of it; SIGKILL follows SIGTERM at once in a hurry. Raises StuckError."""
        stopping = asyncio.ensure_future(self.process.stop(0.0 if hurry.is_set() else grace_s))
        hurried = asyncio.ensure_future(hurry.wait())
        try:
            await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                stopping.cancel()
                await self.process.stop(0.0)
            else:
                stopping.result()
        finally:
            stopping.cancel()
            hurried.cancel()
            await asyncio.gather(stopping, hurried, return_exceptions=True)

    async def unfollow(self) -> None:
        """Ends the tasks and the connection; the processes are left as they are."""
        tasks = (self._watch, self._keys, self._exit, self._log_check)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.link.close()

    async def _bound_log(self, log_bytes: int) -> None:
        while True:
            await asyncio.sleep(_LOG_CHECK_S)
            try:
                await asyncio.to_thread(bound_log, self._log, log_bytes)
            except OSError as error:
                _LOG.warning("%s grows beyond its bound: %s", self._log, error)

    async def _follow_exit(self) -> None:
        how = await self.process.wait_exit()
        tail = "" if is_from_outside(how) else await asyncio.to_thread(log_tail, self._log)
        self._on_exit(f"{how}: {tail}" if tail else how)
