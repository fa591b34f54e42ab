"""The tables of the queue, their version, and what is checked of a file before it is used.

An item's key is its batch's number and its index in one integer, a result's key the batch's number and the
result's: both tables lie in the order in which they are read. Bodies lie apart from what changes of an item,
so that a claim or an end writes small rows only; so do the chunks of files. Every figure that is asked for is
kept as a counter.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from chiron.batch.contract import RefusedError

APPLICATION_ID = 0x43484251
"""Marks a SQLite file as a batch queue."""

OLDEST_SQLITE = (3, 37, 0)
"""The first version with strict tables."""

# Items: what a state means for a claim, not how an item ended (that is in its result).
QUEUED, DELAYED, RUNNING, INVALID, ENDED = range(5)

Step = Callable[[sqlite3.Connection], None]
"""Brings the schema from one version to the next, inside the transaction it is called in."""

_FIRST = (
    """CREATE TABLE store (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        clock REAL NOT NULL, fence INTEGER NOT NULL,
        open_batches INTEGER NOT NULL, queued INTEGER NOT NULL, stored_bytes INTEGER NOT NULL) STRICT""",
    "INSERT INTO store VALUES (1, 0.0, 0, 0, 0, 0)",
    """CREATE TABLE tenants (
        tenant TEXT PRIMARY KEY,
        open_batches INTEGER NOT NULL DEFAULT 0, queued INTEGER NOT NULL DEFAULT 0,
        running INTEGER NOT NULL DEFAULT 0, stored_bytes INTEGER NOT NULL DEFAULT 0,
        succeeded INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
        completion_tokens INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID""",
    """CREATE TABLE batches (
        no INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL, batch_id TEXT NOT NULL, state INTEGER NOT NULL,
        created REAL NOT NULL, deadline REAL NOT NULL, expire_late INTEGER NOT NULL,
        fail_invalid INTEGER NOT NULL, priority INTEGER NOT NULL, items INTEGER NOT NULL,
        cancelled INTEGER NOT NULL DEFAULT 0, touched REAL NOT NULL, sealed REAL, ended REAL, expires REAL,
        received INTEGER NOT NULL DEFAULT 0, contiguous INTEGER NOT NULL DEFAULT 0,
        invalid INTEGER NOT NULL DEFAULT 0,
        queued INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0,
        succeeded INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
        cancelled_items INTEGER NOT NULL DEFAULT 0, expired INTEGER NOT NULL DEFAULT 0,
        late INTEGER NOT NULL DEFAULT 0, prompt_tokens INTEGER NOT NULL DEFAULT 0,
        completion_tokens INTEGER NOT NULL DEFAULT 0, stored_bytes INTEGER NOT NULL DEFAULT 0,
        swept INTEGER NOT NULL DEFAULT -1,
        UNIQUE (tenant, batch_id)) STRICT""",
    "CREATE INDEX batches_of_tenant ON batches (tenant, no)",
    "CREATE INDEX open_of_tenant ON batches (tenant, no) WHERE state < 4",
    "CREATE INDEX receiving ON batches (touched) WHERE state = 1",
    "CREATE INDEX to_fail ON batches (no) WHERE state = 2 AND invalid > 0",
    "CREATE INDEX to_expire ON batches (deadline) WHERE state = 2 AND expire_late = 1",
    "CREATE INDEX to_cancel ON batches (no) WHERE state = 3",
    "CREATE INDEX to_forget ON batches (expires) WHERE state = 4",
    "CREATE TABLE metadata (batch INTEGER PRIMARY KEY, entries TEXT NOT NULL) STRICT",
    """CREATE TABLE units (
        unit INTEGER PRIMARY KEY,
        batch INTEGER NOT NULL, model TEXT NOT NULL,
        queued INTEGER NOT NULL DEFAULT 0, prompt_tokens INTEGER NOT NULL DEFAULT 0,
        max_tokens INTEGER NOT NULL DEFAULT 0,
        UNIQUE (batch, model)) STRICT""",
    "CREATE INDEX waiting_units ON units (batch) WHERE queued > 0",
    # Runs of items that are kept above the first gap, [start, stop).
    """CREATE TABLE runs (
        batch INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
        PRIMARY KEY (batch, start)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE sessions (
        session INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL, ttl REAL NOT NULL, lapses REAL NOT NULL) STRICT""",
    "CREATE INDEX sessions_by_lapse ON sessions (lapses)",
    """CREATE TABLE items (
        id INTEGER PRIMARY KEY,
        unit INTEGER NOT NULL, state INTEGER NOT NULL, custom_id TEXT NOT NULL,
        prompt_tokens INTEGER NOT NULL, max_tokens INTEGER NOT NULL,
        digest BLOB NOT NULL, size INTEGER NOT NULL,
        saved INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
        fence INTEGER NOT NULL DEFAULT 0, session INTEGER, ready REAL, number INTEGER) STRICT""",
    "CREATE UNIQUE INDEX names ON items (id >> 32, custom_id)",
    f"CREATE INDEX queued_items ON items (unit) WHERE state = {QUEUED}",
    f"CREATE INDEX delayed_items ON items (unit, ready) WHERE state = {DELAYED}",
    f"CREATE INDEX running_items ON items (session) WHERE state = {RUNNING}",
    f"CREATE INDEX invalid_items ON items (id) WHERE state = {INVALID}",
    """CREATE TABLE bodies (
        id INTEGER PRIMARY KEY, body BLOB NOT NULL, failure BLOB NOT NULL) STRICT""",
    """CREATE TABLE checkpoints (
        id INTEGER PRIMARY KEY, checkpoint BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT""",
    """CREATE TABLE results (
        id INTEGER PRIMARY KEY,
        item INTEGER NOT NULL, custom_id TEXT NOT NULL, state INTEGER NOT NULL, result BLOB NOT NULL,
        recorded REAL NOT NULL, late INTEGER NOT NULL, attempts INTEGER NOT NULL,
        damaged INTEGER NOT NULL, checksum INTEGER NOT NULL) STRICT""",
    # Batches that are forgotten already, whose rows are removed in slices.
    "CREATE TABLE doomed (batch INTEGER PRIMARY KEY) STRICT",
)

_FILES = (
    "ALTER TABLE batches ADD COLUMN source TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE batches ADD COLUMN refusal TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE batches ADD COLUMN output_file TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE batches ADD COLUMN error_file TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE batches ADD COLUMN cancelled_at REAL",
    "ALTER TABLE batches ADD COLUMN closed REAL",
    "CREATE INDEX sourced ON batches (tenant, batch_id) WHERE source <> ''",
    """CREATE INDEX unfinished ON batches (touched)
        WHERE source <> '' AND closed IS NULL AND state IN (1, 4)""",
    """CREATE TABLE files (
        no INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL, file_id TEXT NOT NULL, kept INTEGER NOT NULL DEFAULT 0,
        kind INTEGER NOT NULL, name TEXT NOT NULL DEFAULT '',
        size INTEGER NOT NULL DEFAULT 0, chunks INTEGER NOT NULL DEFAULT 0,
        created REAL NOT NULL, touched REAL NOT NULL, expires REAL NOT NULL DEFAULT 0,
        batch INTEGER,
        UNIQUE (tenant, file_id)) STRICT""",
    "CREATE INDEX files_to_forget ON files (expires) WHERE kept = 1",
    "CREATE INDEX uploads ON files (touched) WHERE kept = 0",
    "CREATE INDEX views ON files (batch) WHERE batch IS NOT NULL",
    # A chunk's key is its file's number and its own in one integer.
    """CREATE TABLE chunks (id INTEGER PRIMARY KEY, data BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT""",
    # Files that are forgotten already, whose chunks are removed in slices.
    "CREATE TABLE doomed_files (file INTEGER PRIMARY KEY) STRICT",
    # Results that went with a file, and are removed in slices; `after` is the last that was looked at.
    """CREATE TABLE emptying (
        batch INTEGER NOT NULL, kind INTEGER NOT NULL, after INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (batch, kind)) STRICT, WITHOUT ROWID""",
)

CONTROL_TABLES = (
    "store",
    "tenants",
    "batches",
    "metadata",
    "units",
    "runs",
    "sessions",
    "doomed",
    "files",
    "doomed_files",
    "emptying",
)
"""What a queue cannot do without; small, however many items wait."""


def _create(db: sqlite3.Connection) -> None:
    for statement in _FIRST:
        db.execute(statement)


def _add_files(db: sqlite3.Connection) -> None:
    for statement in _FILES:
        db.execute(statement)


STEPS: tuple[Step, ...] = (_create, _add_files)
"""From no schema to version 1, and on."""


def prepare(db: sqlite3.Connection, path: str, steps: Sequence[Step] = STEPS) -> None:
    """Makes or migrates the schema, in one transaction.

    Raises:
        RefusedError: the file is none of a batch queue, or of a newer version.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise RefusedError(f"{path} is a SQLite file, but not a batch queue")
    if version > len(steps):
        raise RefusedError(
            f"{path} has schema version {version}; this program knows versions up to {len(steps)}: "
            "start the newer version again, or restore a backup that is older"
        )
    if version == len(steps):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        for step in steps[version:]:
            step(db)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(steps)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def check(db: sqlite3.Connection, path: str) -> None:
    """Checks the tables that the queue cannot do without; those of the items are checked row by row, as they
    are read, since a check of them would take as long as the queue is large.

    Raises:
        RefusedError: a table is damaged.
    """
    for table in CONTROL_TABLES:
        (answer,) = db.execute(f"PRAGMA quick_check('{table}')").fetchone()
        if answer != "ok":
            raise RefusedError(f"{path} is damaged (table {table}: {answer}); restore a backup")
