"""Hears from the other routers on the queue which batches have changed, and tells them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable

import asyncpg

from chiron.batch.postgres.failures import KNOWN
from chiron.batch.records import BatchKey

log = logging.getLogger(__name__)

TELL_EVERY_S = 0.1
"""Changes that are not urgent are told together, at most so often."""
PAYLOAD = 7_000
"""Bytes; PostgreSQL takes 8,000. Where more batches have changed, any may have."""
PAUSE_S = 1.0
"""Between attempts to reach the database."""
MERGED = 10_000
"""Batches that wait to be told of; of more, any may have changed."""


class Notices:
    """One connection that listens, and sends what has been collected."""

    def __init__(
        self,
        connect: Callable[[], contextlib.AbstractAsyncContextManager[asyncpg.Connection]],
        channel: str,
        heard: Callable[[set[BatchKey] | None], None],
    ) -> None:
        """Starts.

        Args:
            connect: a connection of its own.
            channel: the queue's.
            heard: is told batches that have changed; None: any may have.
        """
        self._connect = connect
        self._channel = channel
        self._heard = heard
        self._untold: set[BatchKey] = set()
        self._any = False
        self._wake = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="batch queue notices")

    def tell(self, keys: set[BatchKey]) -> None:
        """Tells the others soon."""
        self._untold |= keys
        if len(self._untold) > MERGED:
            self._untold, self._any = set(), True
        self._wake.set()

    async def close(self) -> None:
        """Ends; what is not told by then is what nobody waits to work on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            try:
                async with self._connect() as db:
                    db.add_termination_listener(self._on_lost)
                    await db.add_listener(self._channel, self._on_notice)
                    # What was said while nobody listened is unknown.
                    self._heard(None)
                    while not db.is_closed():
                        await self._wake.wait()
                        self._wake.clear()
                        await self._send(db)
                        await asyncio.sleep(TELL_EVERY_S)
            except KNOWN as error:
                log.warning("the batch queue's notices are interrupted: %s", error)
            await asyncio.sleep(PAUSE_S)

    async def _send(self, db: asyncpg.Connection) -> None:
        if not self._untold and not self._any:
            return
        text = "" if self._any else payload(self._untold)
        self._untold, self._any = set(), False
        try:
            await db.execute("SELECT pg_notify($1, $2)", self._channel, text)
        except BaseException:
            self._any = True
            raise

    def _on_lost(self, _db: object) -> None:
        self._wake.set()

    def _on_notice(self, _db: object, _pid: int, _channel: str, text: str) -> None:
        self._heard({(tenant, batch_id) for tenant, batch_id in json.loads(text)} if text else None)


def payload(keys: set[BatchKey]) -> str:
    """The text of a notice: the batches; empty: any may have changed."""
    text = json.dumps(sorted(keys))
    return text if len(text) <= PAYLOAD else ""


def channel_of(schema: str) -> str:
    """The channel of the queue in a schema."""
    return f"{schema}.batches"
