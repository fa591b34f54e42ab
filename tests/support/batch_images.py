"""Whether an image of a SQLite queue's files holds what was acknowledged."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from chiron.batch.records import BatchState
from chiron.batch.sqlite import SqliteBatchQueue
from tests.support.batch_writer import GROUP, KEY, Acknowledged, item, result_of, work_key

NEWEST = 500
"""Items that are compared with what was handed in; those before are counted."""


async def check_image(folder: Path, known: Acknowledged) -> None:
    """Opens the image as a router would after a crash."""
    queue = await SqliteBatchQueue.open(folder / "queue.db")
    try:
        newest = [item(index) for index in sorted(known.appended)[-NEWEST:]]
        if newest:
            assert (await queue.get(KEY)).counts.received >= len(known.appended)
            assert await queue.append(KEY, newest) == 0, "an acknowledged item is gone"
        for number in known.sealed:
            batch = await queue.get(work_key(number))
            assert batch.state in (BatchState.ACTIVE, BatchState.ENDED)
            assert batch.counts.received == GROUP
            counts = batch.counts
            assert counts.queued + counts.running + counts.ended == GROUP
            results = await queue.results(work_key(number), after=0, limit=100, most_bytes=1 << 30)
            assert [one.number for one in results] == list(range(1, counts.ended + 1))
            assert not any(one.damaged for one in results)
            kept = {one.index: one.result for one in results}
            for batch_number, index in known.finished:
                if batch_number == number:
                    assert kept.get(index) == result_of(index), "an acknowledged result is gone"
    finally:
        await queue.close()
    database = sqlite3.connect(folder / "queue.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        database.close()
