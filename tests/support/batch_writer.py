"""A process that writes to a SQLite queue and says what was acknowledged, and a reader of what it said.

python -m tests.support.batch_writer FOLDER [checkpoint pages]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chiron.batch.records import BatchKey, ItemState, NewBatch, NewItem, Outcome
from chiron.batch.sqlite import SqliteBatchQueue, file

KEY: BatchKey = ("acme", "endless")
MODEL = "chat"
GROUP = 5
WRITERS = 4


def item(index: int) -> NewItem:
    return NewItem(index, f"c{index}", MODEL, 10, 20, b"body %d " % index * (1 + index % 40))


def result_of(index: int) -> bytes:
    return b"result %d " % index * (1 + index % 30)


def work_key(number: int) -> BatchKey:
    return "acme", f"work-{number}"


@dataclass(slots=True)
class Acknowledged:
    """What the writer was told is on disk."""

    appended: set[int] = field(default_factory=set)
    """Items of KEY."""
    sealed: set[int] = field(default_factory=set)
    """Numbers of batches of GROUP items each."""
    finished: set[tuple[int, int]] = field(default_factory=set)
    """Batch and index."""


def read(said: bytes) -> Acknowledged:
    """What whole lines say."""
    known = Acknowledged()
    for line in said.decode().splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        kind, *numbers = json.loads(line)
        if kind == "appended":
            known.appended.update(range(numbers[0], numbers[0] + GROUP))
        elif kind == "sealed":
            known.sealed.add(numbers[0])
        elif kind == "finished":
            known.finished.add((numbers[0], numbers[1]))
    return known


class _Writer:
    def __init__(self, queue: SqliteBatchQueue, said: int) -> None:
        self._queue = queue
        self._said = said
        self._next = 0
        self._works = 0

    def _say(self, *what: object) -> None:
        os.write(self._said, json.dumps(what).encode() + b"\n")

    async def append(self) -> None:
        while True:
            first, self._next = self._next, self._next + GROUP
            await self._queue.append(KEY, [item(index) for index in range(first, first + GROUP)])
            self._say("appended", first)

    async def work(self) -> None:
        session = await self._queue.begin_session("writer", 3_600.0)
        while True:
            number, self._works = self._works, self._works + 1
            key = work_key(number)
            await self._queue.create(NewBatch(key[1], key[0], 3_600.0))
            await self._queue.append(key, [item(index) for index in range(GROUP)])
            await self._queue.seal(key, GROUP)
            self._say("sealed", number)
            for claim in await self._queue.claim(session, key, MODEL, GROUP):
                result = result_of(claim.lease.index)
                await self._queue.finish(session, [Outcome(claim.lease, ItemState.SUCCEEDED, result)])
                self._say("finished", number, claim.lease.index)


async def _main(folder: Path, pages: Sequence[str]) -> None:
    if pages:
        file.CHECKPOINT_PAGES = int(pages[0])
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    queue = await SqliteBatchQueue.open(folder / "queue.db")
    await queue.create(NewBatch(KEY[1], KEY[0], 3_600.0))
    writer = _Writer(queue, said)
    await asyncio.gather(*(writer.append() for _ in range(WRITERS)), *(writer.work() for _ in range(2)))


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), sys.argv[2:]))
