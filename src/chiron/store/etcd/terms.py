"""Terms: each greater than all before, whoever asks and from wherever."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.internal.v1 import state_pb2
from chiron.store.contract import FencedError, UnavailableError
from chiron.store.etcd.connection import Connection
from chiron.store.etcd.leadership import Leadership
from chiron.store.etcd.methods import TXN
from chiron.store.etcd.txn import mod_is, put, range_of
from chiron.store.etcd.values import encode_term, parse

HOLDER_BYTES = 12


def stored_term(kvs: Sequence[pb.KeyValue]) -> state_pb2.StoredTerm:
    """From the answer to a range over the term's key; term 0 before the first. Raises SchemaError."""
    if not kvs:
        return state_pb2.StoredTerm()
    return parse(state_pb2.StoredTerm, kvs[0].key, kvs[0].value)


async def acquire(
    connection: Connection, key: bytes, clock_ms: Callable[[], int], leadership: Leadership | None
) -> int:
    """Stores a new term at `key` and returns it.

    It is the wall clock in milliseconds, or one more than the last where that is greater: agents that have
    seen the terms of an in-memory store, or of an etcd that was since restored from a backup, follow it too.

    Raises FencedError when the leadership has been lost, and UnavailableError.
    """
    holder = secrets.token_bytes(HOLDER_BYTES)
    deadline = time.monotonic() + connection.settings.patience_s
    guards = leadership.guards() if leadership is not None else ()
    while True:
        request = pb.TxnRequest(compare=guards, success=[range_of(key)])
        answer = await connection.call(TXN, request, repeatable=True)
        if not answer.succeeded:
            raise FencedError("the leadership has passed to another")
        kvs = answer.responses[0].response_range.kvs
        stored = stored_term(kvs)
        if stored.holder == holder:
            # The write that seemed to fail took effect.
            return stored.term
        term = max(stored.term + 1, clock_ms())
        request = pb.TxnRequest(
            compare=[*guards, mod_is(key, kvs[0].mod_revision if kvs else 0)],
            success=[put(key, encode_term(term, holder))],
        )
        try:
            if (await connection.call(TXN, request)).succeeded:
                return term
        except UnavailableError as error:
            if not error.uncertain or time.monotonic() > deadline:
                raise
