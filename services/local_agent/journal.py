"""The journal as the agent's event loop uses it: writes leave the loop, those that come together share one.

A disk that takes no more stops what must be on record first (new workers, new terms), and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from services.local_agent.journal_file import JournalFile
from services.local_agent.memory import Entry, Memory

_LOG = logging.getLogger(__name__)
_RETRY_S = 5.0


class JournalError(Exception):
    """Something could not be put on record; the text names the file and the cause."""


class Journal:
    """Writes entries in the order in which they are given."""

    def __init__(
        self, file: JournalFile, on_change: Callable[[], None], *, retry_s: float = _RETRY_S
    ) -> None:
        """Writes nothing.

        Args:
            file: the file, read.
            on_change: called when `problem` appears and when it goes.
            retry_s: time between two tries to write what could not be written.
        """
        self._file = file
        self._on_change = on_change
        self._retry_s = retry_s
        self._pending: list[tuple[Entry, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self.problem = ""
        """Why the newest entries are not on disk; empty: they are."""

    @property
    def memory(self) -> Memory:
        """What the journal told when it was read; not to be used once something is written."""
        return self._file.memory

    async def write(self, *entries: Entry) -> None:
        """Returns once the entries are on disk. Raises JournalError when they are not."""
        await asyncio.gather(*map(self._enqueue, entries))

    def note(self, *entries: Entry) -> None:
        """Writes entries that nobody has to wait for: without them a successor only has more to find out."""
        for entry in entries:
            self._enqueue(entry).add_done_callback(lambda future: future.exception())

    async def close(self) -> None:
        """Returns once everything that was given has been written or has failed."""
        if self._retry is not None:
            self._retry.cancel()
        while self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)

    def _enqueue(self, entry: Entry) -> asyncio.Future[None]:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, written))
        self._start()
        return written

    def _start(self) -> None:
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_pending(), name="journal")

    async def _write_pending(self) -> None:
        try:
            await self._commit_pending()
            while self._pending:
                await self._commit_pending()
        finally:
            self._writer = None

    async def _commit_pending(self) -> None:
        batch, self._pending = self._pending, []
        try:
            await asyncio.to_thread(self._file.commit, [entry for entry, _ in batch])
        except OSError as error:
            problem = f"the journal {self._file.path} cannot be written: {error.strerror or error}"
            self._settle(problem)
            for _, written in batch:
                if not written.done():
                    written.set_exception(JournalError(problem))
            return
        self._settle("")
        for _, written in batch:
            if not written.done():
                written.set_result(None)

    def _settle(self, problem: str) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if problem:
            self._retry = asyncio.get_running_loop().call_later(self._retry_s, self._start)
        if problem != self.problem:
            if problem:
                _LOG.error("%s; no worker is started until it can, those that run go on", problem)
            else:
                _LOG.info("the journal %s can be written again", self._file.path)
            self.problem = problem
            self._on_change()
