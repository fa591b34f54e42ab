"""A SQLite queue on a disk that is full takes no writes, says so, and goes on when there is room again."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chiron.batch.contract import UnavailableError
from chiron.batch.records import BatchState
from chiron.batch.sqlite import SqliteBatchQueue
from tests.conformance.batch_cases import (
    KEY,
    all_results,
    claim_one,
    done,
    item,
    items,
    new_batch,
    sealed,
    session,
)

pytestmark = pytest.mark.system

BALLAST = 4 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB, half of which a file takes that can be removed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=True)
    (folder / "ballast").write_bytes(bytes(BALLAST))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def fill(queue: SqliteBatchQueue) -> tuple[int, str]:
    """Appends until the queue takes no more: how many items it has acknowledged, and what it says."""
    kept = 0
    while True:
        new = [dataclasses.replace(item(kept + at), body=bytes(2_000)) for at in range(20)]
        try:
            kept += await queue.append(KEY, new)
        except UnavailableError as error:
            return kept, str(error)


async def test_a_full_disk(disk: Path) -> None:
    queue = await SqliteBatchQueue.open(disk / "queue.db")
    other = await sealed(queue, items(*range(4)), new_batch("other"))
    holder = await session(queue)
    claim = await claim_one(queue, holder, other)
    await queue.create(new_batch())
    kept, why = await fill(queue)
    assert "the disk is full" in why
    assert kept > 100
    # Reads go on, and calls that overlap with one that fails are answered for themselves.
    assert (await queue.get(KEY)).counts.received == kept
    assert [unit.queued for unit in await queue.units()] == [3]
    answers = await asyncio.gather(
        queue.append(KEY, items(*range(kept, kept + 5_000))), queue.get(other), return_exceptions=True
    )
    assert isinstance(answers[0], UnavailableError)
    (disk / "ballast").unlink()
    assert await queue.append(KEY, items(*range(kept, kept + 100))) == 100
    await queue.renew(holder)
    assert not await queue.finish(holder, [done(claim)])
    assert len(await all_results(queue, other)) == 1
    assert (await queue.seal(KEY, kept + 100)).state == BatchState.ACTIVE
    await queue.close()
    queue = await SqliteBatchQueue.open(disk / "queue.db")
    assert (await queue.get(KEY)).counts.queued == kept + 100
    await queue.close()
