"""The tables of the queue in a schema of their own, their version, and who makes them.

Every figure that is asked for is kept as a counter. A write locks in this order, so that no two wait for each
other: a session, items by batch and place, batches by number, files, units by number, tenants by name.
"""

from __future__ import annotations

import asyncpg

from chiron.batch.contract import RefusedError

# Items: what a state means for a claim, not how an item ended (that is in its result).
QUEUED, DELAYED, RUNNING, INVALID, ENDED = range(5)

_FIRST = (
    # The one clock of the queue. Leases and deadlines of all routers go by it.
    """CREATE FUNCTION queue_now() RETURNS float8 LANGUAGE sql VOLATILE
        RETURN extract(epoch FROM clock_timestamp())::float8""",
    "CREATE SEQUENCE fences AS int8",
    """CREATE TABLE tenants (
        tenant text PRIMARY KEY,
        open_batches int8 NOT NULL DEFAULT 0, queued int8 NOT NULL DEFAULT 0,
        running int8 NOT NULL DEFAULT 0, stored_bytes int8 NOT NULL DEFAULT 0,
        succeeded int8 NOT NULL DEFAULT 0, failed int8 NOT NULL DEFAULT 0,
        completion_tokens int8 NOT NULL DEFAULT 0) WITH (fillfactor = 50)""",
    """CREATE TABLE batches (
        no int8 PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
        tenant text NOT NULL, batch_id text NOT NULL, state int2 NOT NULL,
        created float8 NOT NULL, deadline float8 NOT NULL, expire_late bool NOT NULL,
        fail_invalid bool NOT NULL, priority int4 NOT NULL, items int8 NOT NULL,
        cancelled bool NOT NULL DEFAULT false, touched float8 NOT NULL,
        sealed float8, ended float8, expires float8,
        received int8 NOT NULL DEFAULT 0, contiguous int8 NOT NULL DEFAULT 0,
        invalid int8 NOT NULL DEFAULT 0,
        queued int8 NOT NULL DEFAULT 0, running int8 NOT NULL DEFAULT 0,
        succeeded int8 NOT NULL DEFAULT 0, failed int8 NOT NULL DEFAULT 0,
        cancelled_items int8 NOT NULL DEFAULT 0, expired int8 NOT NULL DEFAULT 0,
        late int8 NOT NULL DEFAULT 0, prompt_tokens int8 NOT NULL DEFAULT 0,
        completion_tokens int8 NOT NULL DEFAULT 0, stored_bytes int8 NOT NULL DEFAULT 0,
        swept int8 NOT NULL DEFAULT -1, metadata text NOT NULL DEFAULT '{}',
        UNIQUE (tenant, batch_id)) WITH (fillfactor = 50)""",
    "CREATE INDEX batches_of_tenant ON batches (tenant, no)",
    "CREATE INDEX open_of_tenant ON batches (tenant, no) WHERE state < 4",
    "CREATE INDEX receiving ON batches (touched) WHERE state = 1",
    "CREATE INDEX to_fail ON batches (no) WHERE state = 2 AND invalid > 0",
    "CREATE INDEX to_expire ON batches (deadline) WHERE state = 2 AND expire_late AND queued > 0",
    "CREATE INDEX to_cancel ON batches (no) WHERE state = 3",
    "CREATE INDEX to_forget ON batches (expires) WHERE state = 4",
    """CREATE TABLE units (
        unit int8 PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
        batch int8 NOT NULL, model text NOT NULL,
        queued int8 NOT NULL DEFAULT 0, prompt_tokens int8 NOT NULL DEFAULT 0,
        max_tokens int8 NOT NULL DEFAULT 0,
        UNIQUE (batch, model)) WITH (fillfactor = 50)""",
    "CREATE INDEX waiting_units ON units (batch) WHERE queued > 0",
    # Runs of items that are kept above the first gap, [start, stop).
    """CREATE TABLE runs (
        batch int8 NOT NULL, start int8 NOT NULL, stop int8 NOT NULL, PRIMARY KEY (batch, start))""",
    """CREATE TABLE sessions (
        session int8 PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
        owner text NOT NULL, ttl float8 NOT NULL, lapses float8 NOT NULL) WITH (fillfactor = 50)""",
    """CREATE TABLE items (
        batch int8 NOT NULL, place int8 NOT NULL,
        unit int8, state int2 NOT NULL, custom_id text NOT NULL,
        prompt_tokens int8 NOT NULL, max_tokens int8 NOT NULL,
        digest bytea NOT NULL, size int8 NOT NULL,
        saved int8 NOT NULL DEFAULT 0, attempts int4 NOT NULL DEFAULT 0,
        fence int8 NOT NULL DEFAULT 0, session int8, ready float8, number int8,
        PRIMARY KEY (batch, place)) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02)""",
    "CREATE UNIQUE INDEX names ON items (batch, custom_id)",
    f"CREATE INDEX queued_items ON items (unit, place) WHERE state = {QUEUED}",
    f"CREATE INDEX delayed_items ON items (unit, ready) WHERE state = {DELAYED}",
    f"CREATE INDEX running_items ON items (session) WHERE state = {RUNNING}",
    f"CREATE INDEX invalid_items ON items (batch, place) WHERE state = {INVALID}",
    """CREATE TABLE bodies (
        batch int8 NOT NULL, place int8 NOT NULL, body bytea NOT NULL, failure bytea NOT NULL,
        PRIMARY KEY (batch, place))""",
    """CREATE TABLE checkpoints (
        batch int8 NOT NULL, place int8 NOT NULL, checkpoint bytea NOT NULL, checksum int8 NOT NULL,
        PRIMARY KEY (batch, place))""",
    """CREATE TABLE results (
        batch int8 NOT NULL, number int8 NOT NULL,
        item int8 NOT NULL, custom_id text NOT NULL, state int2 NOT NULL, result bytea NOT NULL,
        recorded float8 NOT NULL, late int2 NOT NULL, attempts int4 NOT NULL,
        damaged int2 NOT NULL, checksum int8 NOT NULL,
        PRIMARY KEY (batch, number))""",
    # Batches that are forgotten already, whose rows are removed in slices.
    "CREATE TABLE doomed (batch int8 PRIMARY KEY)",
)

_FILES = (
    """ALTER TABLE batches
        ADD COLUMN source text NOT NULL DEFAULT '', ADD COLUMN refusal text NOT NULL DEFAULT '',
        ADD COLUMN output_file text NOT NULL DEFAULT '', ADD COLUMN error_file text NOT NULL DEFAULT '',
        ADD COLUMN cancelled_at float8, ADD COLUMN closed float8""",
    """CREATE INDEX sourced ON batches (tenant, batch_id COLLATE "C") WHERE source <> ''""",
    """CREATE INDEX unfinished ON batches (touched)
        WHERE source <> '' AND closed IS NULL AND state IN (1, 4)""",
    """CREATE TABLE files (
        no int8 PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
        tenant text NOT NULL, file_id text COLLATE "C" NOT NULL, kept bool NOT NULL DEFAULT false,
        kind int2 NOT NULL, name text NOT NULL DEFAULT '',
        size int8 NOT NULL DEFAULT 0, chunks int8 NOT NULL DEFAULT 0,
        created float8 NOT NULL, touched float8 NOT NULL, expires float8 NOT NULL DEFAULT 0,
        batch int8,
        UNIQUE (tenant, file_id)) WITH (fillfactor = 50)""",
    "CREATE INDEX files_to_forget ON files (expires) WHERE kept",
    "CREATE INDEX uploads ON files (touched) WHERE NOT kept",
    "CREATE INDEX views ON files (batch) WHERE batch IS NOT NULL",
    """CREATE TABLE chunks (
        file int8 NOT NULL, chunk int8 NOT NULL, data bytea NOT NULL, checksum int8 NOT NULL,
        PRIMARY KEY (file, chunk))""",
    # Files that are forgotten already, whose chunks are removed in slices.
    "CREATE TABLE doomed_files (file int8 PRIMARY KEY)",
    # Results that went with a file, and are removed in slices; `after` is the last that was looked at.
    """CREATE TABLE emptying (
        batch int8 NOT NULL, kind int2 NOT NULL, after int8 NOT NULL DEFAULT 0,
        PRIMARY KEY (batch, kind))""",
)

STEPS: tuple[tuple[str, ...], ...] = (_FIRST, _FILES)
"""The statements from no schema to version 1, and on."""

_LOCK = 0x43484251
"""Advisory lock of whoever makes or migrates a schema; the second key is the schema's."""


async def prepare(db: asyncpg.Connection, schema: str, steps: tuple[tuple[str, ...], ...] = STEPS) -> None:
    """Makes or migrates the schema, in one transaction; several routers may do so at the same time.

    Raises:
        RefusedError: the schema is of a newer version, or holds something else.
    """
    quoted = quote(schema)
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK, schema)
        exists = await db.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema)
        if not exists:
            await db.execute(f"CREATE SCHEMA {quoted}")
        version = 0
        if await db.fetchval("SELECT to_regclass($1)", f"{quoted}.queue_version"):
            version = await db.fetchval(f"SELECT version FROM {quoted}.queue_version")
        elif exists and await db.fetchval(
            "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = $1 LIMIT 1",
            schema,
        ):
            raise RefusedError(f"schema {schema!r} holds tables, but no batch queue")
        else:
            await db.execute(f"CREATE TABLE {quoted}.queue_version (version int4 NOT NULL)")
            await db.execute(f"INSERT INTO {quoted}.queue_version VALUES (0)")
        if version > len(steps):
            raise RefusedError(
                f"schema {schema!r} has version {version}; this program knows versions up to {len(steps)}: "
                "start the newer version again, or restore a backup that is older"
            )
        if version == len(steps):
            return
        await db.execute(f"SET LOCAL search_path TO {quoted}")
        for step in steps[version:]:
            for statement in step:
                await db.execute(statement)
        await db.execute(f"UPDATE {quoted}.queue_version SET version = $1", len(steps))


def quote(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'
