"""What is kept of an item beside its row, and whether it is as it was written."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple
from zlib import crc32

from chiron.batch.sqlite.failures import is_damage
from chiron.batch.sqlite.rows import ItemRow, digest

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


def read_content(db: sqlite3.Connection, item: ItemRow) -> Content | None:
    """None: the item is damaged. A checkpoint that is damaged is left out: the item begins anew."""
    try:
        row = db.execute(_BODY, (item.unit, item.id)).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return None
    if row is None:
        return None
    model, body, failure = row
    own = digest(item.place, item.custom_id, model, item.prompt_tokens, item.max_tokens, body, failure)
    if own != item.digest:
        return None
    return Content(model, body, failure, _read_checkpoint(db, item) if item.saved else b"")


def _read_checkpoint(db: sqlite3.Connection, item: ItemRow) -> bytes:
    try:
        row = db.execute(_CHECKPOINT, (item.id,)).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return b""
    return row[0] if row and crc32(row[0]) == row[1] else b""


def save_checkpoint(db: sqlite3.Connection, item: ItemRow, checkpoint: bytes) -> None:
    """Keeps a checkpoint in place of the last one."""
    db.execute(_SAVE, (item.id, checkpoint, crc32(checkpoint)))
    db.execute("UPDATE items SET saved = ? WHERE id = ?", (len(checkpoint), item.id))


def drop_content(db: sqlite3.Connection, items: Iterable[ItemRow]) -> None:
    """Removes what is kept of items that have ended."""
    keys = [(item.id,) for item in items]
    _delete(db, "bodies", keys)
    _delete(db, "checkpoints", [(item.id,) for item in items if item.saved])


def _delete(db: sqlite3.Connection, table: str, keys: list[tuple[int]]) -> None:
    statement = f"DELETE FROM {table} WHERE id = ?"
    try:
        db.executemany(statement, keys)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        # What lies on a damaged page stays there; nothing looks for it any more.
        for key in keys:
            try:
                db.execute(statement, key)
            except sqlite3.DatabaseError as again:
                if not is_damage(again):
                    raise
