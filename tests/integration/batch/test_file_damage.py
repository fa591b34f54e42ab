"""Chunks of files, and results that go with one, that are not as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chiron.batch.filing import DamagedFileError
from chiron.batch.sqlite import SqliteBatchQueue
from tests.conformance.batch_cases import KEY, all_results, done, items, sealed, session, sweep_all
from tests.conformance.batch_files import FILE, stored, stored_bytes
from tests.conformance.batch_sourced import OUTPUT, VIEWS, sourced
from tests.integration.batch.test_sqlite_damage import flip, zero_page_of

GOOD, BAD = b"good " * 2_000, b"a part of the file that will be found damaged " * 200


@pytest.mark.parametrize("damage", [flip, zero_page_of])
async def test_a_damaged_chunk_is_told_and_can_be_deleted(
    tmp_path: Path, damage: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "queue.db"
    queue = await SqliteBatchQueue.open(path)
    await stored(queue, GOOD, BAD)
    await queue.close()
    damage(path, BAD[:500])
    queue = await SqliteBatchQueue.open(path)
    if damage is flip:
        # The beginning of a chunk lies on a page with its neighbours'.
        assert await queue.files.read(FILE, 0) == GOOD
    with pytest.raises(DamagedFileError, match="chunk 1 was found damaged"):
        await queue.files.read(FILE, 1)
    await queue.files.delete(FILE)
    await sweep_all(queue)
    assert await stored_bytes(queue) == 0
    await queue.close()


async def test_a_damaged_result_that_goes_with_its_file_stays_damaged(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue = await SqliteBatchQueue.open(path)
    await sealed(queue, items(0, 1), sourced())
    holder = await session(queue)
    await queue.finish(holder, [done(one) for one in await queue.claim(holder, KEY, "chat", 2)])
    await queue.finalize(KEY, VIEWS)
    await queue.close()
    flip(path, b"result of 1")
    queue = await SqliteBatchQueue.open(path)
    await queue.files.delete(OUTPUT)
    await sweep_all(queue)
    assert [(one.removed, one.damaged) for one in await all_results(queue)] == [(True, False), (False, True)]
    await queue.close()
