"""The connections of a queue: made, given out, and their failures told as the contract's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from chiron.batch.contract import RefusedError
from chiron.batch.postgres.failures import AGAIN, KNOWN, translate
from chiron.batch.postgres.notices import channel_of, payload
from chiron.batch.postgres.schema import prepare, quote
from chiron.batch.postgres.transaction import Transaction
from chiron.batch.records import Limits

CONNECTIONS = 8
"""Most of one router, beside the one that listens."""
CONNECT_S = 10.0
CALL_S = 30.0
"""After which a call counts as failed; what it has written is uncertain."""
SCHEMA = "chiron_batch"
_ROUNDS = 5
_DATABASE = """SELECT format('%s/%s', (SELECT system_identifier FROM pg_control_system()), oid)
    FROM pg_database WHERE datname = current_database()"""
_SETTINGS = {
    "application_name": "chiron",
    # A router that freezes or vanishes in the midst of a write must not hold up the others by its locks.
    "idle_in_transaction_session_timeout": "10s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25s",
    "lock_timeout": "20s",
    # Every statement goes by keys that it is given, or along an index in its order. Statistics that lag
    # behind tables which are filled and emptied within minutes would have all that waits read and sorted.
    "enable_bitmapscan": "off",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}

_T = TypeVar("_T")
log = logging.getLogger(__name__)


def split_url(url: str) -> tuple[str, str]:
    """An address without its `schema` parameter, and the schema it names. Raises RefusedError."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query)
    schema = dict(query).get("schema", SCHEMA)
    if not schema or len(schema.encode()) > 40 or schema.startswith("pg_"):
        raise RefusedError(f"batch queue: schema {schema!r} is no name of a schema of its own")
    rest = urlencode([(key, value) for key, value in query if key != "schema"])
    return urlunsplit(parts._replace(query=rest)), schema


def told_as(url: str) -> str:
    """The address for people: without its password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


class Pool:
    """A bounded set of connections. Made by `open`."""

    def __init__(self, pool: asyncpg.Pool, address: str, schema: str, limits: Limits, database: str) -> None:
        self.schema = schema
        self.name = f"{database}/{schema}"
        """The same for everybody who uses this schema, by whatever address."""
        self._pool = pool
        self._address = address
        self._limits = limits
        self._where = told_as(address)

    @classmethod
    async def open(cls, url: str, limits: Limits) -> Pool:
        """Connects, and makes or migrates the schema. Raises RefusedError, UnavailableError."""
        address, schema = split_url(url)
        where = told_as(address)
        try:
            db = await asyncpg.connect(address, timeout=CONNECT_S, command_timeout=CALL_S)
            try:
                if await db.fetchval("SHOW fsync") == "off":
                    log.warning(
                        "batch queue %s: fsync is off there: a power failure loses what it keeps", where
                    )
                weak = await db.fetchval("SHOW synchronous_commit") == "off"
                await prepare(db, schema)
                database = str(await db.fetchval(_DATABASE))
            finally:
                await db.close(timeout=CONNECT_S)
            settings = _SETTINGS | {"search_path": quote(schema)}
            if weak:
                settings["synchronous_commit"] = "on"
            pool = await asyncpg.create_pool(
                address,
                min_size=1,
                max_size=CONNECTIONS,
                timeout=CONNECT_S,
                command_timeout=CALL_S,
                server_settings=settings,
            )
        except KNOWN as error:
            raise translate(error, where) from error
        except ValueError as error:
            raise RefusedError(f"batch queue {where}: {error}") from error
        return cls(pool, address, schema, limits, database)

    async def read(self, query: Callable[[asyncpg.Connection], Awaitable[_T]]) -> _T:
        """Asks on one snapshot. Raises UnavailableError, RefusedError, and what the query raises."""
        try:
            async with (
                self._pool.acquire(timeout=CALL_S) as db,
                db.transaction(isolation="repeatable_read", readonly=True),
            ):
                return await query(db)
        except KNOWN as error:
            raise translate(error, self._where) from error

    async def write(
        self,
        work: Callable[[Transaction], Awaitable[_T]],
        committed: Callable[[Transaction], None],
    ) -> _T:
        """Makes one transaction, again where the database asks for that.

        Args:
            work: does the writing; what it raises undoes all of it.
            committed: is called with the transaction once it is durable.

        Raises:
            UnavailableError: `uncertain` once it was begun.
            RefusedError, and what the work raises.
        """
        for left in reversed(range(_ROUNDS)):
            begun = False
            try:
                async with self._pool.acquire(timeout=CALL_S) as db:
                    begun = True
                    async with db.transaction():
                        tx = Transaction(db, await db.fetchval("SELECT queue_now()"), self._limits)
                        answer = await work(tx)
                        await tx.commit()
                        if tx.told and tx.changed:
                            text = payload(tx.changed)
                            await db.execute("SELECT pg_notify($1, $2)", channel_of(self.schema), text)
                committed(tx)
                return answer
            except AGAIN as error:
                if not left:
                    raise translate(error, self._where) from error
            except KNOWN as error:
                raise translate(error, self._where, uncertain=begun) from error
        raise AssertionError("the last round returns or raises")

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of its own, which is none of the bounded set. Raises one of KNOWN."""
        db = await asyncpg.connect(
            self._address, timeout=CONNECT_S, command_timeout=CALL_S, server_settings=_SETTINGS
        )
        try:
            yield db
        finally:
            with contextlib.suppress(*KNOWN):
                await db.close(timeout=CONNECT_S)

    async def close(self) -> None:
        """Waits for calls under way, but not for ever."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()
