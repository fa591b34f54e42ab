"""What is kept of an item beside its row, and whether it is as it was written."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

from chiron.batch.integrity import digest
from chiron.batch.sqlite.failures import is_damage
from chiron.batch.sqlite.rows import ItemRow

_BODY = """SELECT u.model, b.body, b.failure FROM bodies b CROSS JOIN units u ON u.unit = ?
    WHERE b.id = ?"""
_SAVE = "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)"
_CHECKPOINT = "SELECT checkpoint, checksum FROM checkpoints WHERE id = ?"


class Content(NamedTuple):
    """What an item says, and how far it has come."""

    model: str
    body: bytes
    failure: bytes
    checkpoint: bytes


Unreadable = set[tuple[str, int]]
"""Rows, by table and key, on pages that cannot be read. SQLite commits no transaction that has met such a
page: each is noted here as it is met, and the write made again does not look at it."""


def read_content(db: sqlite3.Connection, item: ItemRow, unreadable: Unreadable) -> Content | None:
    """None: the item is damaged. A checkpoint that is damaged is left out: the item begins anew."""
    row = _read(db, _BODY, (item.unit, item.id), ("bodies", item.id), unreadable)
    if row is None:
        return None
    model, body, failure = row
    own = digest(item.place, item.custom_id, model, item.prompt_tokens, item.max_tokens, body, failure)
    if own != item.digest:
        return None
    checkpoint = b""
    if item.saved:
        saved = _read(db, _CHECKPOINT, (item.id,), ("checkpoints", item.id), unreadable)
        checkpoint = saved[0] if saved and crc32(saved[0]) == saved[1] else b""
    return Content(model, body, failure, checkpoint)


def _read(
    db: sqlite3.Connection, query: str, keys: tuple[int, ...], place: tuple[str, int], unreadable: Unreadable
) -> Any:
    if place in unreadable:
        return None
    try:
        return db.execute(query, keys).fetchone()
    except sqlite3.DatabaseError as error:
        _note(error, place, unreadable)
        return None


def _note(error: sqlite3.DatabaseError, place: tuple[str, int], unreadable: Unreadable) -> None:
    if not is_damage(error):
        raise error
    unreadable.add(place)


def save_checkpoint(db: sqlite3.Connection, item: ItemRow, checkpoint: bytes, unreadable: Unreadable) -> bool:
    """Keeps a checkpoint in place of the last one; False: it cannot, its place is damaged."""
    place = ("checkpoints", item.id)
    if place in unreadable:
        return False
    try:
        db.execute(_SAVE, (item.id, checkpoint, crc32(checkpoint)))
    except sqlite3.DatabaseError as error:
        _note(error, place, unreadable)
        return False
    db.execute("UPDATE items SET saved = ? WHERE id = ?", (len(checkpoint), item.id))
    return True


def drop_content(db: sqlite3.Connection, items: Sequence[ItemRow], unreadable: Unreadable) -> None:
    """Removes what is kept of items that have ended; what is damaged stays, and nothing looks for it."""
    _delete(db, "bodies", [item.id for item in items], unreadable)
    _delete(db, "checkpoints", [item.id for item in items if item.saved], unreadable)


def _delete(db: sqlite3.Connection, table: str, keys: Sequence[int], unreadable: Unreadable) -> None:
    statement = f"DELETE FROM {table} WHERE id = ?"
    rows = [(key,) for key in keys if not unreadable or (table, key) not in unreadable]
    try:
        db.executemany(statement, rows)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        for row in rows:
            try:
                db.execute(statement, row)
            except sqlite3.DatabaseError as again:
                _note(again, (table, row[0]), unreadable)
