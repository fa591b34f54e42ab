"""Working: sessions, claims, checkpoints, ends and returns of items."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.batch.contract import SessionLostError
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
from chiron.batch.sqlite.content import read_content, save_checkpoint
from chiron.batch.sqlite.rows import ITEM_COLUMNS, BatchRow, ItemRow, row_id
from chiron.batch.sqlite.schema import DELAYED, ENDED, QUEUED, RUNNING
from chiron.batch.sqlite.transaction import Ending, Transaction

CLAIM_BYTES = 32 << 20
"""A claim hands out no further item once its bodies and checkpoints have this size."""

MOST_PUT_BACK = 1_000_000
_WAITING = f"""SELECT {ITEM_COLUMNS} FROM items INDEXED BY queued_items
    WHERE unit = ? AND state = {QUEUED} ORDER BY id LIMIT ?"""
_CLAIMED = f"""UPDATE items SET state = {RUNNING}, fence = ?, session = ?, attempts = attempts + 1
    WHERE id = ?"""
_DUE = f"""UPDATE items SET state = {QUEUED}, ready = NULL WHERE id IN (
    SELECT id FROM items INDEXED BY delayed_items
    WHERE unit = ? AND state = {DELAYED} AND ready <= ? ORDER BY ready LIMIT ?)"""
_RETURNED = "UPDATE items SET state = ?, ready = ?, attempts = attempts - ?, session = NULL WHERE id = ?"
_HELD = f"""SELECT {ITEM_COLUMNS} FROM items INDEXED BY running_items
    WHERE session = ? AND state = {RUNNING} ORDER BY id LIMIT ?"""


def begin_session(tx: Transaction, owner: str, ttl_s: float) -> Session:
    """As the contract has it."""
    (made,) = tx.db.execute(
        "INSERT INTO sessions (owner, ttl, lapses) VALUES (?, ?, ?) RETURNING session",
        (owner, ttl_s, tx.now + ttl_s),
    ).fetchone()
    return Session(made, owner, ttl_s)


def renew(tx: Transaction, session: Session) -> None:
    """As the contract has it."""
    done = tx.db.execute(
        "UPDATE sessions SET lapses = ? WHERE session = ? AND lapses > ?",
        (tx.now + session.ttl_s, session.session_id, tx.now),
    )
    if not done.rowcount:
        raise _lost(session)


def _lost(session: Session) -> SessionLostError:
    return SessionLostError(f"session {session.session_id} of {session.owner!r} has lapsed or ended")


def _alive(tx: Transaction, session: Session) -> None:
    found = tx.db.execute(
        "SELECT 1 FROM sessions WHERE session = ? AND lapses > ?", (session.session_id, tx.now)
    ).fetchone()
    if not found:
        raise _lost(session)


def end_session(tx: Transaction, session: Session) -> None:
    """As the contract has it."""
    release(tx, session.session_id, MOST_PUT_BACK, counts=False)
    tx.db.execute("DELETE FROM sessions WHERE session = ?", (session.session_id,))


def release(tx: Transaction, session: int, limit: int, *, counts: bool) -> tuple[int, int]:
    """Puts back up to `limit` items that a session holds; returns how many went back, and how many ended
    since they have no attempt left.
    """
    endings = []
    returned = []
    for item in map(ItemRow._make, tx.db.execute(_HELD, (session, limit)).fetchall()):
        if counts and spent(tx, item) and not _cancelled(tx, item):
            endings.append(Ending(item, ItemState.FAILED))
        else:
            requeue(tx, item)
            returned.append((QUEUED, None, 0 if counts else 1, item.id))
    tx.db.executemany(_RETURNED, returned)
    tx.end(endings)
    return len(returned), len(endings)


def spent(tx: Transaction, item: ItemRow) -> bool:
    """Whether the item has no attempt left."""
    return 0 < tx.limits.attempts <= item.attempts


def requeue(tx: Transaction, item: ItemRow) -> None:
    """Counts a running item as waiting."""
    delta = tx.delta(tx.batch(item.batch))
    delta.running -= 1
    delta.queued += 1
    tx.waits(item.unit, 1, item.prompt_tokens, item.max_tokens)


def claim(tx: Transaction, session: Session, key: BatchKey, model: str, limit: int) -> list[Claim]:
    """As the contract has it."""
    _alive(tx, session)
    row = tx.find(key)
    if row is None or row.state != BatchState.ACTIVE or limit <= 0:
        return []
    if row.expire_late and tx.now >= row.deadline:
        return []
    found = tx.db.execute("SELECT unit FROM units WHERE batch = ? AND model = ?", (row.no, model)).fetchone()
    if found is None:
        return []
    (unit,) = found
    tx.db.execute(_DUE, (unit, tx.now, max(limit, 256)))
    claims: list[Claim] = []
    while len(claims) < limit:
        waiting = [
            ItemRow._make(columns)
            for columns in tx.db.execute(_WAITING, (unit, limit - len(claims))).fetchall()
        ]
        taken, damaged = _take(tx, session, row, waiting)
        claims += taken
        tx.end([Ending(item, ItemState.FAILED, damaged=True) for item in damaged])
        if not damaged:
            break
    return claims


def _take(
    tx: Transaction, session: Session, row: BatchRow, waiting: Sequence[ItemRow]
) -> tuple[list[Claim], list[ItemRow]]:
    """Claims for waiting items as far as CLAIM_BYTES goes, and those among them that are damaged."""
    claims: list[Claim] = []
    damaged: list[ItemRow] = []
    marks = []
    size = 0
    for fence, item in zip(tx.fences(len(waiting)), waiting, strict=True):
        if size > CLAIM_BYTES:
            break
        content = read_content(tx.db, item, tx.unreadable)
        if content is None:
            damaged.append(item)
            continue
        size += len(content.body) + len(content.checkpoint)
        claims.append(
            Claim(
                lease=Lease(row.key, item.place, fence),
                custom_id=item.custom_id,
                model=content.model,
                deadline=row.deadline,
                expire_late=row.late_expires,
                prompt_tokens=item.prompt_tokens,
                max_tokens=item.max_tokens,
                attempt=item.attempts + 1,
                body=content.body,
                checkpoint=content.checkpoint,
            )
        )
        marks.append((fence, session.session_id, item.id))
        tx.waits(item.unit, -1, -item.prompt_tokens, -item.max_tokens)
    if marks:
        tx.db.executemany(_CLAIMED, marks)
        delta = tx.delta(row)
        delta.queued -= len(marks)
        delta.running += len(marks)
    return claims, damaged


def _leased(tx: Transaction, lease: Lease) -> ItemRow | None:
    """The item of a lease that still counts, or counted until it was put back or ended under it."""
    row = tx.find(lease.batch)
    item = tx.item(row_id(row.no, lease.index)) if row else None
    return item if item and item.fence == lease.fence else None


def checkpoint(tx: Transaction, session: Session, states: Sequence[tuple[Lease, bytes]]) -> list[Lease]:
    """As the contract has it."""
    _alive(tx, session)
    stale = []
    for lease, state in states:
        item = _leased(tx, lease)
        if item is None or item.state != RUNNING or _cancelled(tx, item):
            stale.append(lease)
        else:
            _save(tx, item, state)
    return stale


def _cancelled(tx: Transaction, item: ItemRow) -> bool:
    return tx.batch(item.batch).state == BatchState.CANCELLING


def _save(tx: Transaction, item: ItemRow, state: bytes) -> None:
    if save_checkpoint(tx.db, item, state, tx.unreadable):
        tx.delta(tx.batch(item.batch)).stored_bytes += len(state) - item.saved


def finish(tx: Transaction, outcomes: Sequence[Outcome]) -> list[Lease]:
    """As the contract has it."""
    stale = []
    endings: dict[int, Ending] = {}
    for outcome in outcomes:
        item = _leased(tx, outcome.lease)
        if item is None or (item.state != ENDED and _cancelled(tx, item)):
            stale.append(outcome.lease)
        elif item.state != ENDED and item.id not in endings:
            endings[item.id] = Ending(
                item,
                outcome.state,
                outcome.result,
                outcome.lease.fence,
                outcome.prompt_tokens,
                outcome.completion_tokens,
            )
    tx.end(list(endings.values()))
    return stale


def put_back(tx: Transaction, session: Session, returns: Sequence[Return]) -> list[Lease]:
    """As the contract has it."""
    _alive(tx, session)
    stale = []
    endings: dict[int, Ending] = {}
    seen: set[int] = set()
    for one in returns:
        item = _leased(tx, one.lease)
        if item is None or (item.state != ENDED and _cancelled(tx, item)):
            stale.append(one.lease)
            continue
        if item.state != RUNNING or item.id in seen:
            continue
        seen.add(item.id)
        if one.counts and spent(tx, item):
            endings[item.id] = Ending(item, ItemState.FAILED, one.failure, one.lease.fence)
            continue
        if one.checkpoint is not None:
            _save(tx, item, one.checkpoint)
        requeue(tx, item)
        delayed = one.delay_s > 0
        ready = tx.now + one.delay_s if delayed else None
        tx.db.execute(_RETURNED, (DELAYED if delayed else QUEUED, ready, 0 if one.counts else 1, item.id))
    tx.end(list(endings.values()))
    return stale
