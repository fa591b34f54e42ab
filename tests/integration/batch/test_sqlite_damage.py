"""Rows of a SQLite queue that are not as they were written fail alone."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from chiron.batch.contract import BatchQueue
from chiron.batch.records import BatchState, ItemState
from chiron.batch.sqlite import SqliteBatchQueue
from tests.conformance.batch_cases import (
    KEY,
    all_results,
    claim_one,
    done,
    indexes,
    item,
    items,
    new_batch,
    sealed,
    session,
    sweep_all,
)

ITEMS = 40


def big_items() -> list[object]:
    return [dataclasses.replace(one, body=one.body * 120) for one in items(*range(ITEMS))]


def change(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    with db:
        assert db.execute(statement).rowcount == 1
    db.close()


def zero_page_of(path: Path, text: bytes) -> None:
    """Makes the page that holds this text unreadable."""
    content = bytearray(path.read_bytes())
    page = content.index(text) // 4096 * 4096
    content[page : page + 64] = b"\xff" * 64
    path.write_bytes(content)


def flip(path: Path, text: bytes) -> None:
    """Changes one byte of this text."""
    content = bytearray(path.read_bytes())
    content[content.index(text) + len(text) // 2] ^= 0x20
    path.write_bytes(content)


async def reopened(queue: BatchQueue, path: Path, damage: Callable[[], None]) -> BatchQueue:
    await queue.close()
    damage()
    return await SqliteBatchQueue.open(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, b"body 7body 7body 7"),
        lambda path: change(path, "UPDATE bodies SET body = x'00' WHERE id & 0xffffffff = 7"),
        lambda path: change(path, "UPDATE items SET custom_id = 'another' WHERE custom_id = 'c7'"),
        lambda path: change(path, "UPDATE items SET max_tokens = 101 WHERE custom_id = 'c7'"),
        lambda path: change(path, "DELETE FROM bodies WHERE id & 0xffffffff = 7"),
    ],
)
async def test_a_damaged_item_fails_and_holds_up_no_other(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "queue.db"
    queue: BatchQueue = await SqliteBatchQueue.open(path)
    key = await sealed(queue, big_items())
    queue = await reopened(queue, path, lambda: damage(path))
    claims = await queue.claim(await session(queue), key, "chat", 20)
    assert indexes(claims) == [*range(7), *range(8, 21)]
    (failed,) = await all_results(queue)
    assert (failed.index, failed.state, failed.damaged) == (7, ItemState.FAILED, True)
    counts = (await queue.get(key)).counts
    assert (counts.failed, counts.running, counts.queued) == (1, 20, ITEMS - 21)
    await queue.close()


async def test_a_page_of_bodies_that_cannot_be_read_costs_its_items_alone(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue: BatchQueue = await SqliteBatchQueue.open(path)
    key = await sealed(queue, big_items())
    queue = await reopened(queue, path, lambda: zero_page_of(path, b"body 20body 20"))
    holder = await session(queue)
    claims = await queue.claim(holder, key, "chat", ITEMS)
    lost = {one.index for one in await all_results(queue)}
    assert 20 in lost
    assert len(lost) < 10
    assert sorted(lost | set(indexes(claims))) == list(range(ITEMS))
    assert not await queue.finish(holder, [done(one) for one in claims])
    assert (await queue.get(key)).state == BatchState.ENDED
    assert len(await all_results(queue)) == ITEMS
    await queue.delete(key)
    await sweep_all(queue)
    await queue.close()


async def test_an_item_whose_checkpoint_is_damaged_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue: BatchQueue = await SqliteBatchQueue.open(path)
    key = await sealed(queue, items(0))
    holder = await session(queue)
    claim = await claim_one(queue, holder, key)
    await queue.checkpoint(holder, [(claim.lease, b"this far it had come")])
    queue = await reopened(queue, path, lambda: flip(path, b"this far it had come"))
    await sweep_all(queue)
    again = await claim_one(queue, await session(queue), key)
    assert (again.checkpoint, again.body) == (b"", item(0).body)
    await queue.close()


@pytest.mark.parametrize(
    ("damage", "at_most"),
    [
        (lambda path: flip(path, b"result of 9 result of 9"), 1),
        (lambda path: change(path, "UPDATE results SET state = 2 WHERE item = 9"), 1),
        (lambda path: change(path, "UPDATE results SET late = 1 WHERE item = 9"), 1),
        (lambda path: zero_page_of(path, b"result of 9 result of 9"), 10),
    ],
)
async def test_a_damaged_result_is_told_as_such(
    tmp_path: Path, damage: Callable[[Path], None], at_most: int
) -> None:
    path = tmp_path / "queue.db"
    queue: BatchQueue = await SqliteBatchQueue.open(path)
    key = await sealed(queue, items(*range(ITEMS)))
    holder = await session(queue)
    outcomes = [
        dataclasses.replace(done(one), result=b"result of %d " % one.lease.index * 50)
        for one in await queue.claim(holder, key, "chat", ITEMS)
    ]
    await queue.finish(holder, outcomes)
    queue = await reopened(queue, path, lambda: damage(path))
    results = await all_results(queue)
    assert [one.number for one in results] == list(range(1, ITEMS + 1))
    assert [one.index for one in results] == list(range(ITEMS))
    bad = {one.index for one in results if one.damaged}
    assert 9 in bad
    assert len(bad) <= at_most
    for one in results:
        wanted = b"" if one.index in bad else b"result of %d " % one.index * 50
        assert (one.custom_id, one.result) == (f"c{one.index}", wanted)
        assert one.state is (ItemState.FAILED if one.index in bad else ItemState.SUCCEEDED)
    found = await queue.result(key, "c9")
    assert found is not None
    assert found.damaged
    await queue.close()


async def test_a_damaged_failure_of_an_invalid_item_is_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    queue: BatchQueue = await SqliteBatchQueue.open(path)
    await queue.create(new_batch())
    await queue.append(KEY, [item(0, failure=b"no such model here")])
    queue = await reopened(queue, path, lambda: flip(path, b"no such model here"))
    await queue.seal(KEY, 1)
    (failed,) = await all_results(queue)
    assert (failed.state, failed.damaged, failed.result) == (ItemState.FAILED, True, b"")
    await queue.close()
