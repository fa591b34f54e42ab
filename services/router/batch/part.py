"""The batch queue of a router and the work on it, put together."""

from __future__ import annotations

import asyncio
import logging

from chiron.batch.contract import BatchQueue
from chiron.batch.opening import open_queue
from services.router.batch.estimates import Serving
from services.router.batch.item import MOST_RESUMES, ItemRunner
from services.router.batch.runner import BatchRunner
from services.router.batch.settings import BatchSettings
from services.router.placer import Placer
from services.router.proxy import Proxy
from services.router.retries import Retries
from services.router.streams import Streams

log = logging.getLogger(__name__)


class BatchPart:
    """Made by `open`."""

    def __init__(self, queue: BatchQueue, runner: BatchRunner) -> None:
        self.queue = queue
        self.runner = runner
        self._task = asyncio.create_task(runner.run(), name="batch queue")

    @classmethod
    async def open(
        cls,
        settings: BatchSettings,
        owner: str,
        placer: Placer,
        retries: Retries,
        streams: Streams,
        *,
        max_resumes: int,
        tracing: bool,
    ) -> BatchPart:
        """Opens the queue and begins to work on it.

        Args:
            settings: name the store.
            owner: this router's id.
            placer: of the router.
            retries: of the router.
            streams: of the router.
            max_resumes: of a stream.
            tracing: whether spans are exported.

        Raises:
            RefusedError: the store cannot be used.
            UnavailableError: it cannot be reached.
        """
        queue = await open_queue(settings.store, settings.limits)
        proxy = Proxy(retries, min(max_resumes, MOST_RESUMES), placer, streams)
        runner = BatchRunner(
            settings,
            queue,
            owner,
            ItemRunner(settings, placer, proxy, retries),
            placer.demand,
            room=placer.room,
            serving=lambda model: Serving(*placer.batch_load(model)),
            weight=placer.access.batch_weight,
            tracing=tracing,
        )
        runner.book = placer.book
        name = queue.shared_name or f"of {owner}"
        placer.on_load = runner.look
        placer.on_report = lambda report: runner.backlog.report(name, report)
        return cls(queue, runner)

    @property
    def task(self) -> asyncio.Task[None]:
        """Runs for as long as the router."""
        return self._task

    async def stop(self, timeout_s: float) -> None:
        """Gives everything back, within `timeout_s` seconds."""
        await self.runner.stop(timeout_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Closes the queue; nobody uses it any more."""
        await self.queue.close()
