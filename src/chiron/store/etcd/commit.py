"""The one way in which the state is written: a fenced compare-and-set on the head."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store.contract import (
    CompactedError,
    ConflictError,
    FencedError,
    RefusedError,
    TooLargeError,
    Transaction,
    UnavailableError,
)
from chiron.store.decisions import Outcome
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.decision_log import DecisionLog
from chiron.store.etcd.head import Head, Heads
from chiron.store.etcd.keys import Keys
from chiron.store.etcd.leadership import Leadership
from chiron.store.etcd.methods import TXN
from chiron.store.etcd.terms import stored_term
from chiron.store.etcd.txn import delete, mod_is, put, range_of
from chiron.store.etcd.values import (
    decode_outcomes,
    decode_record,
    encode_decisions,
    encode_head,
    encode_outcomes,
    encode_record,
)
from chiron.store.records import Key

_ID_BYTES = 12
_OWN_READS = 3
"""The head, the term and the election's key."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one etcd transaction takes; etcd's own defaults."""

    operations: int = 128
    """`--max-txn-ops`."""
    request_bytes: int = 1_572_864
    """`--max-request-bytes`."""


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a commit rests on, all at one etcd revision."""

    head: Head
    term: int
    term_mod_revision: int
    leads: bool
    revisions: dict[Key, int]
    """Of the records that the transaction asks about and that exist."""
    outcomes: dict[int, dict[str, Outcome]]
    """What has come of the decisions whose outcomes the transaction has, by their numbers: all of their
    transaction's."""


class Committer:
    """Writes transactions, one at a time."""

    def __init__(
        self, connection: Connection, keys: Keys, heads: Heads, log: DecisionLog, limits: Limits
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._heads = heads
        self._log = log
        self._limits = limits

    async def commit(self, transaction: Transaction, leadership: Leadership | None) -> int:
        """See Store.commit.

        Every write compares the head and the term with what was read before, so that it can take effect only
        on that state, and only once. After a write whose answer was lost, the head is read: it names the
        commit that it came from. While the head has not moved, sending the same again is safe; one of both
        writes at most can find the head unmoved.
        """
        commit_id = secrets.token_bytes(_ID_BYTES)
        deadline = time.monotonic() + self._connection.settings.patience_s
        unanswered: Head | None = None
        while True:
            try:
                if leadership is not None and not leadership.held:
                    raise FencedError("the leadership's lease may have ended")
                basis = await self._read(transaction, leadership)
                if unanswered is not None and basis.head.version != unanswered.version:
                    done = await self._heads.successor(unanswered)
                    if done is not None and done.commit_id == commit_id:
                        return done.revision
                    unanswered = None
            except (UnavailableError, CompactedError, RefusedError, FencedError) as error:
                if unanswered is None:
                    raise
                raise _uncertain(error) from error
            request, revision = self._plan(basis, transaction, leadership, commit_id)
            if request is None:
                return revision
            try:
                if (await self._connection.call(TXN, request)).succeeded:
                    return revision
            except UnavailableError as error:
                if error.uncertain:
                    unanswered = basis.head
                if unanswered is None:
                    raise
                if not error.uncertain or time.monotonic() > deadline:
                    raise _uncertain(error) from error

    async def _read(self, transaction: Transaction, leadership: Leadership | None) -> _Basis:
        asked = list(dict.fromkeys([*transaction.expect, *transaction.deletes]))
        numbers = await self._log.locate(transaction.outcomes) if transaction.outcomes else {}
        places = sorted(set(numbers.values()))
        first = [range_of(self._keys.head), range_of(self._keys.term)]
        if leadership is not None:
            first.append(range_of(leadership.key.key, keys_only=True))
        at_once = self._limits.operations - _OWN_READS
        reads = [self._keys.record(key) for key in asked] + [self._keys.outcomes(at) for at in places]
        answers, now = await self._ranges([*first, *map(range_of, reads[:at_once])], 0)
        for start in range(at_once, len(reads), at_once):
            more = [range_of(key) for key in reads[start : start + at_once]]
            answers += (await self._ranges(more, now))[0]
        terms, found = answers[1], answers[len(first) : len(first) + len(asked)]
        outcomes: dict[int, dict[str, Outcome]] = {at: {} for at in places}
        for at, kvs in zip(places, answers[len(first) + len(asked) :], strict=True):
            for kv in kvs:
                outcomes[at] = decode_outcomes(kv.key, kv.value)
        for decision_id, at in numbers.items():
            outcomes[at][decision_id] = transaction.outcomes[decision_id]
        return _Basis(
            head=Head.of(list(answers[0])),
            term=stored_term(terms).term,
            term_mod_revision=terms[0].mod_revision if terms else 0,
            leads=leadership is None or [kv.create_revision for kv in answers[2]] == [leadership.key.rev],
            revisions={
                key: decode_record(kv.key, kv.value)[1]
                for key, kvs in zip(asked, found, strict=True)
                for kv in kvs
            },
            outcomes=outcomes,
        )

    async def _ranges(
        self, operations: Sequence[pb.RequestOp], revision: int
    ) -> tuple[list[Sequence[pb.KeyValue]], int]:
        for operation in operations:
            operation.request_range.revision = revision
        answer = await self._connection.call(TXN, pb.TxnRequest(success=operations), repeatable=True)
        return [one.response_range.kvs for one in answer.responses], answer.header.revision

    def _plan(
        self, basis: _Basis, transaction: Transaction, leadership: Leadership | None, commit_id: bytes
    ) -> tuple[pb.TxnRequest | None, int]:
        """The write, None where there is none, and the store's revision after it."""
        if not basis.leads:
            raise FencedError("the leadership has passed to another")
        if transaction.term != basis.term or not basis.term:
            raise FencedError(f"term {transaction.term} has ended; the newest is {basis.term}")
        present = basis.revisions
        wrong = [key for key, revision in transaction.expect.items() if present.get(key, 0) != revision]
        if wrong:
            raise ConflictError(wrong)
        written: list[Key] = [*(record.key for record in transaction.puts), *transaction.deletes]
        if len(set(written)) != len(written):
            raise ValueError("a transaction writes a key twice")
        deletes = [key for key in transaction.deletes if key in present]
        changes = bool(transaction.puts or deletes)
        if not changes and not transaction.decisions and not basis.outcomes:
            return None, basis.head.revision
        revision = basis.head.revision + changes
        logged = basis.head.decisions + len(transaction.decisions)
        operations = [
            put(self._keys.record(record.key), encode_record(record, revision)) for record in transaction.puts
        ]
        operations += [delete(self._keys.record(key)) for key in deletes]
        operations.append(put(self._keys.head, encode_head(revision, logged, commit_id)))
        # What lies at a number holds that decision and older ones.
        oldest = max(0, logged - self._log.kept + 1)
        operations += [
            put(self._keys.outcomes(at), encode_outcomes(outcomes))
            for at, outcomes in basis.outcomes.items()
            if at >= oldest
        ]
        if transaction.decisions:
            kept = transaction.decisions[-self._log.kept :]
            operations.append(put(self._keys.decisions(logged), encode_decisions(kept)))
            operations.append(delete(self._keys.decisions(0), self._keys.decisions(oldest)))
            self._log.logged(kept, logged)
        request = pb.TxnRequest(
            compare=[
                mod_is(self._keys.head, basis.head.mod_revision),
                mod_is(self._keys.term, basis.term_mod_revision),
                *(leadership.guards() if leadership is not None else ()),
            ],
            success=operations,
        )
        self._check_size(request)
        return request, revision

    def _check_size(self, request: pb.TxnRequest) -> None:
        count, size = len(request.success), request.ByteSize()
        if count > self._limits.operations:
            raise TooLargeError(
                f"the transaction has {count} operations; "
                f"etcd takes {self._limits.operations} (--max-txn-ops)"
            )
        if size > self._limits.request_bytes:
            raise TooLargeError(
                f"the transaction has {size} bytes; "
                f"etcd takes {self._limits.request_bytes} (--max-request-bytes)"
            )


def _uncertain(error: Exception) -> UnavailableError:
    return UnavailableError(f"it is not known whether a write happened: {error}", uncertain=True)
