"""Opens the queue that a configuration names."""

from __future__ import annotations

from chiron.batch.contract import BatchQueue, RefusedError
from chiron.batch.postgres import PostgresBatchQueue
from chiron.batch.records import Limits
from chiron.batch.sqlite.queue import SqliteBatchQueue

_SQLITE = "sqlite:"
_POSTGRES = ("postgresql://", "postgres://")


async def open_queue(url: str, limits: Limits) -> BatchQueue:
    """Opens a queue, or makes an empty one.

    Args:
        url: `sqlite:PATH`, of a file whose folder exists, for one router; or `postgresql://…`, for several.
        limits: how much it takes.

    Raises:
        RefusedError: no store is named so, or this program cannot use it, for good.
        UnavailableError: it cannot be reached at present.
    """
    if url.startswith(_SQLITE):
        return await SqliteBatchQueue.open(url.removeprefix(_SQLITE), limits)
    if url.startswith(_POSTGRES):
        return await PostgresBatchQueue.open(url, limits)
    raise RefusedError(f"no batch queue is named {url!r}: known are {_SQLITE}PATH and postgresql://…")
