"""One bounded round of housekeeping among files."""

from __future__ import annotations

import sqlite3

from chiron.batch.filing import FileKind
from chiron.batch.integrity import DAMAGED, REMOVED
from chiron.batch.records import ItemState
from chiron.batch.sqlite.failures import is_damage
from chiron.batch.sqlite.file_rows import FILE_COLUMNS, FileRow
from chiron.batch.sqlite.filing import forget_file
from chiron.batch.sqlite.rows import INDEX_MASK, RESULT_COLUMNS, result_row, row_id, to_result
from chiron.batch.sqlite.transaction import SLICE, SLICE_BYTES, Transaction

_PAST = f"SELECT {FILE_COLUMNS} FROM files f WHERE f.kept = 1 AND f.expires <= ? ORDER BY f.expires LIMIT 10"
_GIVEN_UP = (
    f"SELECT {FILE_COLUMNS} FROM files f WHERE f.kept = 0 AND f.touched <= ? ORDER BY f.touched LIMIT 10"
)
_CHUNKS = "SELECT id, length(data) FROM chunks WHERE id >= ? AND id <= ? ORDER BY id"
_RESULTS = f"SELECT {RESULT_COLUMNS} FROM results WHERE id > ? AND id <= ? ORDER BY id LIMIT {SLICE}"
_EMPTIED = "UPDATE results SET result = x'', damaged = ?, checksum = ? WHERE id = ?"


def sweep_files(tx: Transaction) -> bool:
    """Whether there may be more to do at once."""
    past = tx.db.execute(_PAST, (tx.now,)).fetchall()
    given_up = tx.db.execute(_GIVEN_UP, (tx.now - tx.limits.upload_s,)).fetchall()
    for row in map(FileRow._make, past + given_up):
        forget_file(tx, row)
    removed = _remove(tx)
    emptied = _empty(tx)
    return bool(past or given_up or removed or emptied)


def _remove(tx: Transaction) -> bool:
    """Removes some chunks of a file that is forgotten."""
    found = tx.db.execute("SELECT file FROM doomed_files LIMIT 1").fetchone()
    if found is None:
        return False
    (no,) = found
    keys: list[tuple[int]] = []
    try:
        if ("doomed_files", no) not in tx.unreadable:
            size = 0
            for key, length in tx.db.execute(_CHUNKS, (row_id(no, 0), row_id(no, INDEX_MASK))):
                keys.append((key,))
                size += length
                if size > SLICE_BYTES:
                    break
            tx.db.executemany("DELETE FROM chunks WHERE id = ?", keys)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        # The rest stays where it is: the number of a file is never given again.
        tx.unreadable.add(("doomed_files", no))
        keys = []
    if not keys:
        tx.db.execute("DELETE FROM doomed_files WHERE file = ?", found)
    return True


def _empty(tx: Transaction) -> bool:
    """Removes some of the results that a forgotten file has shown."""
    found = tx.db.execute("SELECT batch, kind, after FROM emptying LIMIT 1").fetchone()
    if found is None:
        return False
    no, kind, after = found
    last = INDEX_MASK
    try:
        if ("emptying", no) not in tx.unreadable:
            last = _empty_slice(tx, no, FileKind(kind), after)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        tx.unreadable.add(("emptying", no))
    if last == INDEX_MASK:
        tx.db.execute("DELETE FROM emptying WHERE batch = ? AND kind = ?", (no, kind))
    else:
        tx.db.execute("UPDATE emptying SET after = ? WHERE batch = ? AND kind = ?", (last, no, kind))
    return True


def _empty_slice(tx: Transaction, no: int, kind: FileKind, after: int) -> int:
    """Returns the last result that was looked at; INDEX_MASK: there are no more."""
    last, size = INDEX_MASK, 0
    emptied: list[tuple[int, int, int]] = []
    for row in tx.db.execute(_RESULTS, (row_id(no, after), row_id(no, INDEX_MASK))):
        result = to_result(row)
        last = result.number
        if (result.state is ItemState.SUCCEEDED) == (kind is FileKind.OUTPUT) and row[4]:
            key, item, custom_id, state, content, recorded, late, attempts, *_ = row
            fate = DAMAGED if result.damaged else REMOVED
            new = result_row(key, item, custom_id, state, b"", recorded, late, attempts, fate)
            emptied.append((fate, new[-1], key))
            size += len(content)
            if size > SLICE_BYTES:
                break
    tx.db.executemany(_EMPTIED, emptied)
    tx.delta(tx.batch(no)).stored_bytes -= size
    return last
