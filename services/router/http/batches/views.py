"""Reads the files of a batch's results: they are made of what the queue has recorded, as they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from chiron.batch.contract import BatchQueue
from chiron.batch.filing import FileKind, NewView
from chiron.batch.records import Batch, BatchKey, Result
from services.router.http.batches.results import kind_of, line_of
from services.router.http.batches.source import Source
from services.router.http.ids import FILE, new_id

_PAGE, _PAGE_BYTES = 64, 1 << 20
"""What one reader has in memory."""
_AT_ONCE = 8
"""Lines that are made before others have their turn."""


async def content(queue: BatchQueue, key: BatchKey, kind: FileKind) -> AsyncGenerator[bytes, None]:
    """The lines of one file, some at a time.

    Raises UnknownBatchError: the batch was forgotten meanwhile; UnavailableError.
    """
    source = Source.of((await queue.get(key)).source)
    async for results in _some(queue, key):
        shown = [line_of(key[1], source, result) for result in results if kind_of(result) is kind]
        if shown:
            yield b"".join(shown)


async def _some(queue: BatchQueue, key: BatchKey) -> AsyncGenerator[Sequence[Result], None]:
    """All results of a batch, a few at a time."""
    after = 0
    while results := await queue.results(key, after=after, limit=_PAGE, most_bytes=_PAGE_BYTES):
        for start in range(0, len(results), _AT_ONCE):
            yield results[start : start + _AT_ONCE]
            await asyncio.sleep(0)
        after = results[-1].number


@dataclass(slots=True)
class _Size:
    lines: int = 0
    size: int = 0


async def measured(queue: BatchQueue, batch: Batch) -> list[NewView]:
    """The files that a batch that has ended is to have: none without lines.

    Raises UnknownBatchError, UnavailableError.
    """
    if batch.sealed is None:
        # What was read of its file by the time it was cancelled is nobody's result.
        return []
    key, source = (batch.tenant, batch.batch_id), Source.of(batch.source)
    sizes = {FileKind.OUTPUT: _Size(), FileKind.ERRORS: _Size()}
    async for results in _some(queue, key):
        for result in results:
            one = sizes[kind_of(result)]
            one.lines += 1
            one.size += len(line_of(key[1], source, result))
    expires_s = float("inf") if source.output_expires_s is None else source.output_expires_s
    words = {FileKind.OUTPUT: "output", FileKind.ERRORS: "error"}
    return [
        NewView(new_id(FILE), kind, f"{key[1]}_{words[kind]}.jsonl", one.size, expires_s)
        for kind, one in sizes.items()
        if one.lines
    ]
