"""Strikes routers, workers and the database at random moments, and starts again what has ended."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

from chiron.cluster.local import LocalCluster
from chiron.cluster.process import StartError
from tests.support.postgres_server import PostgresServer

_DOWN_S = 0.5
"""Between the end of a service and its next start."""
_FROZEN_S = (0.5, 6.0)
"""Of this length, so that some outlast a session's lease."""


class Faults:
    """One run's faults. The seed gives their kinds and pauses, the machine what they interrupt."""

    def __init__(
        self,
        cluster: LocalCluster,
        database: PostgresServer | Path,
        seed: int,
        every_s: float,
        log: Callable[[str], None],
    ) -> None:
        """`database`: the server, or the file of SQLite's."""
        self._cluster = cluster
        self._database = database
        self._random = random.Random(seed)
        self._every_s = every_s
        self._log = log
        self.kinds: Counter[str] = Counter()

    async def run(self) -> None:
        """Strikes until it is cancelled; what is struck then is brought back first."""
        strikes: dict[str, Callable[[], Awaitable[None]]] = {
            "kill router": self._kill_router,
            "restart router": self._restart_router,
            "freeze router": self._freeze_router,
            "kill worker": self._kill_worker,
        }
        if isinstance(self._database, PostgresServer):
            strikes |= {"kill database": self._kill_database, "freeze database": self._freeze_database}
        else:
            strikes |= {"lock database": self._lock_database}
        names = list(strikes)
        while True:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._every_s)
            name = self._random.choice(names)
            self._log(f"fault {self.kinds.total()}: {name}")
            self.kinds[name] += 1
            task = asyncio.ensure_future(strikes[name]())
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                await task
                raise

    def _router(self) -> str:
        names = sorted(name for name in self._cluster.processes if name.startswith("router-"))
        return self._random.choice(names)

    async def _kill_router(self) -> None:
        await self._end_router(signal.SIGKILL)

    async def _restart_router(self) -> None:
        await self._end_router(signal.SIGTERM)

    async def _end_router(self, number: signal.Signals) -> None:
        name = self._router()
        process = self._cluster.processes[name]
        process.signal(number)
        await process.wait()
        await asyncio.sleep(_DOWN_S)
        await self._start(name)

    async def _start(self, name: str) -> None:
        """As a service manager does: again and again, since the database may be away."""
        while True:
            try:
                await self._cluster.start_again(name)
                return
            except StartError as error:
                self._log(f"{name} does not start yet: {error}")
                await asyncio.sleep(_DOWN_S)

    async def _freeze_router(self) -> None:
        process = self._cluster.processes[self._router()]
        process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(*_FROZEN_S))
        finally:
            process.signal(signal.SIGCONT)

    async def _kill_worker(self) -> None:
        workers = await asyncio.to_thread(self._cluster.workers)
        if workers:
            self._random.choice(workers).kill()

    async def _kill_database(self) -> None:
        assert isinstance(self._database, PostgresServer)
        await asyncio.to_thread(self._database.kill)
        await asyncio.sleep(_DOWN_S)
        await asyncio.to_thread(self._database.start)

    async def _freeze_database(self) -> None:
        assert isinstance(self._database, PostgresServer)
        self._database.freeze()
        try:
            await asyncio.sleep(self._random.uniform(*_FROZEN_S))
        finally:
            self._database.thaw()

    async def _lock_database(self) -> None:
        """Another program writes to the file, for longer than a write waits for it."""
        assert isinstance(self._database, Path)
        held_s = self._random.uniform(*_FROZEN_S)
        with contextlib.closing(sqlite3.connect(self._database, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                self._log(f"the file is locked already: {error}")
                return
            await asyncio.sleep(held_s)
            db.execute("ROLLBACK")
