"""Working: sessions, claims, checkpoints, ends and returns of items."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import asyncpg

from chiron.batch.contract import SessionLostError
from chiron.batch.integrity import digest
from chiron.batch.postgres.rows import ITEM_COLUMNS, ItemRow, batch_by_key
from chiron.batch.postgres.schema import DELAYED, ENDED, QUEUED, RUNNING
from chiron.batch.postgres.transaction import Ending, Transaction
from chiron.batch.records import (
    BatchKey,
    BatchState,
    Claim,
    ItemState,
    Lease,
    Outcome,
    Return,
    Session,
)

CLAIM_BYTES = 32 << 20
"""A claim hands out no further item once its bodies and checkpoints have this size."""

_DUE = f"""UPDATE items SET state = {QUEUED}, ready = NULL WHERE (batch, place) IN (
    SELECT batch, place FROM items WHERE unit = $1 AND state = {DELAYED} AND ready <= $2
    ORDER BY ready LIMIT $3 FOR UPDATE SKIP LOCKED)"""
# Bodies and checkpoints as far as CLAIM_BYTES goes: sizes are known without reading them.
_WAITING = f"""WITH waiting AS (
    SELECT {ITEM_COLUMNS}, i.digest FROM items i
    WHERE i.unit = $1 AND i.state = {QUEUED} ORDER BY i.place LIMIT $2 FOR UPDATE SKIP LOCKED),
    bounded AS (SELECT *, sum(size + saved) OVER (ORDER BY place) - size - saved AS before FROM waiting)
    SELECT {ITEM_COLUMNS}, i.digest, b.body, c.checkpoint, c.checksum FROM bounded i
    LEFT JOIN bodies b ON b.batch = i.batch AND b.place = i.place
    LEFT JOIN checkpoints c ON c.batch = i.batch AND c.place = i.place
    WHERE i.before <= $3 ORDER BY i.place"""
# Fences rise in the order of the places, as `unnest` gives them.
_CLAIMED = f"""WITH fenced AS MATERIALIZED (
    SELECT $2::int8 AS batch, place, nextval('fences') AS fence FROM unnest($3::int8[]) AS place)
    UPDATE items i SET state = {RUNNING}, fence = f.fence, session = $1, attempts = i.attempts + 1
    FROM fenced f WHERE i.batch = f.batch AND i.place = f.place RETURNING i.place, i.fence"""
_RETURNED = """UPDATE items i SET state = r.state, ready = r.ready, attempts = i.attempts - r.uncounted,
    session = NULL
    FROM unnest($1::int8[], $2::int8[], $3::int2[], $4::float8[], $5::int4[])
    AS r(batch, place, state, ready, uncounted) WHERE i.batch = r.batch AND i.place = r.place"""
_SAVE = """INSERT INTO checkpoints SELECT * FROM unnest($1::int8[], $2::int8[], $3::bytea[], $4::int8[])
    ON CONFLICT (batch, place) DO UPDATE
    SET checkpoint = excluded.checkpoint, checksum = excluded.checksum"""
_SAVED = """UPDATE items i SET saved = s.saved FROM unnest($1::int8[], $2::int8[], $3::int8[])
    AS s(batch, place, saved) WHERE i.batch = s.batch AND i.place = s.place"""
# Found first and sorted then: in the order of the primary key all items would be looked at.
_HELD = f"""WITH held AS MATERIALIZED (
    SELECT batch, place FROM items WHERE session = $1 AND state = {RUNNING} LIMIT $2)
    SELECT {ITEM_COLUMNS} FROM held h JOIN items i ON i.batch = h.batch AND i.place = h.place
    WHERE i.session = $1 AND i.state = {RUNNING} ORDER BY i.batch, i.place FOR UPDATE OF i"""


async def begin_session(tx: Transaction, owner: str, ttl_s: float) -> Session:
    """As the contract has it."""
    made = await tx.db.fetchval(
        "INSERT INTO sessions (owner, ttl, lapses) VALUES ($1, $2, $3) RETURNING session",
        owner,
        ttl_s,
        tx.now + ttl_s,
    )
    return Session(made, owner, ttl_s)


async def renew(tx: Transaction, session: Session) -> None:
    """As the contract has it."""
    done = await tx.db.fetchval(
        "UPDATE sessions SET lapses = $2 WHERE session = $1 AND lapses > $3 RETURNING session",
        session.session_id,
        tx.now + session.ttl_s,
        tx.now,
    )
    if done is None:
        raise _lost(session)


def _lost(session: Session) -> SessionLostError:
    return SessionLostError(f"session {session.session_id} of {session.owner!r} has lapsed or ended")


async def _alive(tx: Transaction, session: Session) -> None:
    """Nobody ends the session until this write is over. A renewal may happen meanwhile."""
    found = await tx.db.fetchval(
        "SELECT 1 FROM sessions WHERE session = $1 AND lapses > $2 FOR KEY SHARE", session.session_id, tx.now
    )
    if found is None:
        raise _lost(session)


async def end_session(tx: Transaction, session: Session) -> None:
    """As the contract has it."""
    if await tx.db.fetchval("SELECT 1 FROM sessions WHERE session = $1 FOR UPDATE", session.session_id):
        await release(tx, session.session_id, None, counts=False)
        # This router may be about to end, and others have work from now on.
        tx.told = True
        await tx.db.execute("DELETE FROM sessions WHERE session = $1", session.session_id)


async def release(tx: Transaction, session: int, limit: int | None, *, counts: bool) -> tuple[int, int]:
    """Puts back up to `limit` items that a session, locked, holds; None: all.

    Returns how many went back, and how many ended since they have no attempt left.
    """
    endings = []
    returned: list[_Returned] = []
    for item in [ItemRow(*row) for row in await tx.db.fetch(_HELD, session, limit)]:
        if counts and _spent(tx, item):
            endings.append(Ending(item, ItemState.FAILED))
        else:
            _requeue(tx, item)
            returned.append((item.batch, item.place, QUEUED, None, 0 if counts else 1))
    await _return(tx, returned)
    tx.end(endings)
    return len(returned), len(endings)


_Returned = tuple[int, int, int, float | None, int]


async def _return(tx: Transaction, returned: Sequence[_Returned]) -> None:
    if returned:
        await tx.db.execute(_RETURNED, *map(list, zip(*returned, strict=True)))


def _spent(tx: Transaction, item: ItemRow) -> bool:
    return 0 < tx.limits.attempts <= item.attempts


def _requeue(tx: Transaction, item: ItemRow) -> None:
    """Counts a running item as waiting."""
    delta = tx.delta(item.batch)
    delta.running -= 1
    delta.queued += 1
    tx.waits(item.unit, 1, item.prompt_tokens, item.max_tokens)


async def claim(tx: Transaction, session: Session, key: BatchKey, model: str, limit: int) -> list[Claim]:
    """As the contract has it."""
    await _alive(tx, session)
    row = await batch_by_key(tx.db, key)
    if row is None or row.state != BatchState.ACTIVE or limit <= 0:
        return []
    if row.expire_late and tx.now >= row.deadline:
        return []
    unit = await tx.db.fetchval("SELECT unit FROM units WHERE batch = $1 AND model = $2", row.no, model)
    if unit is None:
        return []
    await tx.db.execute(_DUE, unit, tx.now, max(limit, 256))
    taken: list[tuple[ItemRow, bytes, bytes]] = []
    damaged: list[ItemRow] = []
    # Damaged items are asked for again with those beyond them, since they are still QUEUED until the commit.
    while True:
        waiting = await tx.db.fetch(_WAITING, unit, limit + len(damaged), CLAIM_BYTES)
        found_bad = len(damaged)
        taken, damaged = [], []
        for one in waiting:
            item, content = _content(one, model)
            if content is None:
                damaged.append(item)
            else:
                taken.append((item, *content))
        if len(damaged) <= found_bad or len(taken) >= limit:
            break
    tx.end([Ending(item, ItemState.FAILED, damaged=True) for item in damaged])
    del taken[limit:]
    fences = dict(
        await tx.db.fetch(_CLAIMED, session.session_id, row.no, [item.place for item, _, _ in taken])
    )
    delta = tx.delta(row.no)
    delta.queued -= len(taken)
    delta.running += len(taken)
    claims = []
    for item, body, checkpoint in taken:
        tx.waits(item.unit, -1, -item.prompt_tokens, -item.max_tokens)
        claims.append(
            Claim(
                lease=Lease(key, item.place, fences[item.place]),
                custom_id=item.custom_id,
                model=model,
                deadline=row.deadline,
                expire_late=row.expire_late,
                prompt_tokens=item.prompt_tokens,
                max_tokens=item.max_tokens,
                attempt=item.attempts + 1,
                body=body,
                checkpoint=checkpoint,
            )
        )
    return claims


def _content(row: asyncpg.Record, model: str) -> tuple[ItemRow, tuple[bytes, bytes] | None]:
    """Body and checkpoint; None: the item is damaged. A damaged checkpoint is left out."""
    *columns, expected, body, checkpoint, checksum = row
    item = ItemRow(*columns)
    if body is None:
        return item, None
    own = digest(item.place, item.custom_id, model, item.prompt_tokens, item.max_tokens, body)
    if own != expected:
        return item, None
    if checkpoint is None or crc32(checkpoint) != checksum:
        return item, (body, b"")
    return item, (body, checkpoint)


async def checkpoint(tx: Transaction, session: Session, states: Sequence[tuple[Lease, bytes]]) -> list[Lease]:
    """As the contract has it."""
    await _alive(tx, session)
    held = await tx.leased([lease for lease, _ in states])
    stale = []
    saved: dict[tuple[int, int], tuple[ItemRow, bytes]] = {}
    for lease, state in states:
        item, batch_state = held.get(lease, (None, 0))
        if item is None or item.state != RUNNING or batch_state == BatchState.CANCELLING:
            stale.append(lease)
        else:
            saved[item.batch, item.place] = (item, state)
    await _save(tx, list(saved.values()))
    return stale


async def _save(tx: Transaction, states: Sequence[tuple[ItemRow, bytes]]) -> None:
    if not states:
        return
    keys = [item.batch for item, _ in states], [item.place for item, _ in states]
    await tx.db.execute(_SAVE, *keys, [state for _, state in states], [crc32(state) for _, state in states])
    await tx.db.execute(_SAVED, *keys, [len(state) for _, state in states])
    for item, state in states:
        tx.delta(item.batch).stored_bytes += len(state) - item.saved


async def finish(tx: Transaction, outcomes: Sequence[Outcome]) -> list[Lease]:
    """As the contract has it."""
    held = await tx.leased([outcome.lease for outcome in outcomes])
    stale = []
    endings: dict[Lease, Ending] = {}
    for outcome in outcomes:
        item, batch_state = held.get(outcome.lease, (None, 0))
        if item is None or (item.state != ENDED and batch_state == BatchState.CANCELLING):
            stale.append(outcome.lease)
        elif item.state != ENDED and outcome.lease not in endings:
            endings[outcome.lease] = Ending(
                item,
                outcome.state,
                outcome.result,
                outcome.lease.fence,
                outcome.prompt_tokens,
                outcome.completion_tokens,
            )
    tx.end(endings.values())
    return stale


async def put_back(tx: Transaction, session: Session, returns: Sequence[Return]) -> list[Lease]:
    """As the contract has it."""
    await _alive(tx, session)
    held = await tx.leased([one.lease for one in returns])
    stale = []
    endings: list[Ending] = []
    returned: list[_Returned] = []
    saved: list[tuple[ItemRow, bytes]] = []
    seen: set[Lease] = set()
    for one in returns:
        item, batch_state = held.get(one.lease, (None, 0))
        if item is None or (item.state != ENDED and batch_state == BatchState.CANCELLING):
            stale.append(one.lease)
            continue
        if item.state != RUNNING or one.lease in seen:
            continue
        seen.add(one.lease)
        if one.counts and _spent(tx, item):
            endings.append(Ending(item, ItemState.FAILED, one.failure, one.lease.fence))
            continue
        if one.checkpoint is not None:
            saved.append((item, one.checkpoint))
        _requeue(tx, item)
        delayed = one.delay_s > 0
        ready = tx.now + one.delay_s if delayed else None
        state = DELAYED if delayed else QUEUED
        returned.append((item.batch, item.place, state, ready, 0 if one.counts else 1))
    await _save(tx, saved)
    await _return(tx, returned)
    tx.told = bool(returned)
    tx.end(endings)
    return stale
