"""How the controller writes: compare-and-set on what it has seen, in as many commits as the store needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from chiron.internal.v1 import control_pb2
from chiron.store import (
    Change,
    ConflictError,
    DecisionRecord,
    FencedError,
    InstanceRecord,
    Key,
    Kind,
    Outcome,
    Record,
    RefusedError,
    Snapshot,
    Store,
    TooLargeError,
    Transaction,
    UnavailableError,
)
from services.global_controller.mirror import Mirror
from services.global_controller.store_health import StoreHealth
from services.global_controller.view import Act

Explain = Callable[[Sequence[Act], Snapshot, Sequence[Record]], Sequence[DecisionRecord]]
_ATTEMPTS = 3
_DELETED_FIRST = {Kind.INSTANCE: 0, Kind.NODE: 1}


@dataclass(frozen=True, slots=True)
class Draft:
    """Writes that are not yet bound to revisions, and their explanations."""

    puts: Sequence[Record] = ()
    deletes: Sequence[Key] = ()
    acts: Sequence[Act] = field(default=())
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """What has come of earlier decisions, by their ids."""


class Writer:
    """One write at a time, all of one term."""

    def __init__(
        self,
        store: Store,
        mirror: Mirror,
        health: StoreHealth,
        *,
        explain: Explain,
        on_decided: Callable[[Sequence[DecisionRecord]], None] = lambda decisions: None,
        on_fenced: Callable[[FencedError], None],
    ) -> None:
        """Writes nothing until `term` is set.

        Args:
            store: where to.
            mirror: the state that writes rest on; it shows each one before `write` returns.
            health: told what writes meet.
            explain: makes acts decisions, given the state before and what is written with them.
            on_decided: called with the decisions that have been written.
            on_fenced: called when the term has ended.
        """
        self.term = 0
        self._store = store
        self._mirror = mirror
        self._health = health
        self._explain = explain
        self._on_decided = on_decided
        self._on_fenced = on_fenced
        self._writing = asyncio.Lock()
        self._most_records: int | None = None
        """Records that the store has taken at once, since it refused more."""

    async def write(self, build: Callable[[Snapshot], Draft | None]) -> None:
        """Writes what `build` makes of the present state and returns once the mirror shows it.

        `build` runs again when the state changed meanwhile. What it raises is passed on. A draft that is too
        large for one commit becomes several, in an order that is safe to be cut off after any of them.

        Raises:
            FencedError: the term has ended, or the store has been set back.
            UnavailableError: the store takes no writes; at once while that is known.
            RefusedError: the store does not let this controller write.
            TooLargeError: one record alone is more than the store takes.
        """
        async with self._writing:
            for attempt in range(_ATTEMPTS):
                snapshot = self._mirror.snapshot
                draft = build(snapshot)
                if draft is None or not (draft.puts or draft.deletes or draft.acts or draft.outcomes):
                    return
                if problem := self._health.refuses:
                    raise UnavailableError(problem)
                try:
                    await self._write(snapshot, draft)
                    self._health.worked()
                    return
                except ConflictError as error:
                    self._health.worked()
                    if attempt == _ATTEMPTS - 1:
                        # Nobody else writes in this term, so that what the mirror shows was never written.
                        fenced = FencedError(f"the store holds another state than this leader's: {error}")
                        self._on_fenced(fenced)
                        raise fenced from error
                    await self._mirror.load()
                except FencedError as error:
                    self._on_fenced(error)
                    raise
                except (UnavailableError, RefusedError) as error:
                    self._health.failed(error)
                    raise

    async def _write(self, snapshot: Snapshot, draft: Draft) -> None:
        todo = [draft] if self._most_records is None else split(draft, self._most_records)
        while todo:
            part = todo[0]
            try:
                await self._commit(snapshot, part)
            except TooLargeError:
                records = len(part.puts) + len(part.deletes)
                if records <= 1:
                    raise
                self._most_records = records // 2
                todo[:1] = split(part, self._most_records)
            else:
                del todo[0]

    async def _commit(self, snapshot: Snapshot, part: Draft) -> None:
        keys: list[Key] = [*(record.key for record in part.puts), *part.deletes]
        deletes = tuple(key for key in part.deletes if key in snapshot.revisions)
        transaction = Transaction(
            term=self.term,
            puts=tuple(part.puts),
            deletes=deletes,
            expect={key: snapshot.revisions.get(key, 0) for key in keys},
            decisions=tuple(self._explain(part.acts, snapshot, part.puts)),
            outcomes=part.outcomes,
        )
        revision = await self._store.commit(transaction)
        if part.puts or deletes:
            await self._mirror.committed(Change(revision, transaction.puts, deletes))
        if transaction.decisions:
            self._on_decided(transaction.decisions)


def split(draft: Draft, most: int) -> list[Draft]:
    """Parts of at most `most` records each, in an order after any prefix of which the state makes sense.

    What is wanted comes before what is wanted no more, and what others refer to goes last: a model before its
    instances, instances that start before those that stop, a node's instances before the node. Acts go with
    the record that they explain.
    """
    puts = sorted(draft.puts, key=_rank)
    deletes = sorted(draft.deletes, key=lambda key: _DELETED_FIRST.get(key[0], len(_DELETED_FIRST)))
    acts = list(draft.acts)
    parts: list[Draft] = []
    for start in range(0, max(1, len(puts) + len(deletes)), most):
        mine = puts[start : start + most]
        gone = deletes[max(0, start - len(puts)) : max(0, start + most - len(puts))]
        names = {record.key[1] for record in mine if isinstance(record, InstanceRecord)}
        later = start + most < len(puts) + len(deletes)
        told = [act for act in acts if not later or not act.instance_id or act.instance_id in names]
        acts = [act for act in acts if act not in told]
        parts.append(Draft(mine, gone, told, {} if parts else draft.outcomes))
    return parts


def _rank(record: Record) -> int:
    if not isinstance(record, InstanceRecord):
        return 0
    return 2 if record.desired == control_pb2.DESIRED_STATE_STOPPED else 1
