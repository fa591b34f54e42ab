"""Notices the end of processes at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable


class ProcessWatch:
    """Resolves a future with the reason when the first of several processes ends.

    Args:
        pids: processes of this host; one that is already gone counts as ended.
        on_end: called once with the reason.
    """

    def __init__(self, pids: Iterable[int], on_end: Callable[[str], None]) -> None:
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._descriptors: list[int] = []
        for pid in pids:
            self._watch(pid)

    def _watch(self, pid: int) -> None:
        try:
            # Readable once the process has ended. Unlike a pipe it cannot be kept open by a grandchild.
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            self.ended(f"engine process {pid} has exited")
            return
        self._descriptors.append(descriptor)
        self._loop.add_reader(descriptor, self.ended, f"engine process {pid} has exited")

    def ended(self, reason: str) -> None:
        """Reports an end that was noticed in another way; the first reason stays."""
        self.close()
        if not self._ended.done():
            self._ended.set_result(reason)
            self._on_end(reason)

    @property
    def reason(self) -> str:
        """Why the processes count as ended; empty while they run."""
        return self._ended.result() if self._ended.done() else ""

    async def wait(self) -> str:
        """Returns the reason when the first process ends."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        """Stops watching; may be called twice."""
        for descriptor in self._descriptors:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._descriptors.clear()
