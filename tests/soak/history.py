"""Reads the whole history of the cluster's state in etcd and checks it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import grpc

from chiron.internal.etcd.v1 import etcd_pb2 as etcd
from chiron.internal.v1 import state_pb2
from chiron.store.etcd.keys import Keys, range_end
from chiron.store.etcd.methods import RANGE, WATCH


@dataclass(frozen=True, slots=True)
class Write:
    """One key's change."""

    revision: int
    """etcd's own; what happened together has the same."""
    key: bytes
    value: bytes | None
    """None: deleted."""


@dataclass(frozen=True, slots=True)
class Breaches:
    """What the history shows that must not have happened, one line each."""

    terms: tuple[str, ...] = ()
    """Invariants 7 and 8: terms only rise, and whoever writes has the newest."""
    gpus: tuple[str, ...] = ()
    """Invariant 4: no GPU is given to two instances at once."""


async def read_history(endpoint: str, prefix: str) -> list[Write]:
    """Every write below the prefix from etcd's beginning to the last commit.

    Raises grpc.aio.AioRpcError, and ValueError when etcd has dropped a part of it.
    """
    base, keys = prefix.encode() + b"/", Keys(prefix)
    async with grpc.aio.insecure_channel(endpoint) as channel:
        ask = channel.unary_unary(RANGE.path, RANGE.request.SerializeToString, RANGE.response.FromString)
        last = 0
        for key in (keys.head, keys.term):
            found = await ask(etcd.RangeRequest(key=key))
            last = max(last, *(kv.mod_revision for kv in found.kvs), 0)
        watch = channel.stream_stream(
            WATCH.path, WATCH.request.SerializeToString, WATCH.response.FromString
        )()
        create = etcd.WatchCreateRequest(key=base, range_end=range_end(base), start_revision=1, watch_id=1)
        await watch.write(etcd.WatchRequest(create_request=create))
        writes: list[Write] = []
        while not writes or writes[-1].revision < last:
            response = await watch.read()
            assert isinstance(response, etcd.WatchResponse), "a watch does not end by itself"
            if response.canceled:
                raise ValueError(f"etcd has dropped what came before {response.compact_revision}")
            writes += [
                Write(event.kv.mod_revision, event.kv.key, None if event.type else event.kv.value)
                for event in response.events
            ]
        watch.cancel()
        return writes


def check(writes: Iterable[Write], prefix: str) -> Breaches:
    """Goes through the history, transaction by transaction."""
    keys = Keys(prefix)
    instances: dict[bytes, state_pb2.StoredInstance] = {}
    term = revision = 0
    terms: list[str] = []
    gpus: list[str] = []
    for at, group in groupby(writes, key=lambda write: write.revision):
        written = list(group)
        for write in written:
            if write.key == keys.term and write.value is not None:
                new = state_pb2.StoredTerm.FromString(write.value).term
                if new <= term:
                    terms.append(f"term {new} follows {term} at etcd revision {at}")
                term = new
        for write in written:
            if write.value is None:
                instances.pop(write.key, None)
            elif write.key == keys.head:
                head = state_pb2.StoredHead.FromString(write.value).revision
                if head not in (revision, revision + 1):
                    terms.append(f"revision {head} follows {revision} at etcd revision {at}")
                revision = head
            elif write.key.startswith(keys.state):
                record = state_pb2.StoredRecord.FromString(write.value)
                if record.WhichOneof("record") == "instance":
                    instances[write.key] = record.instance
            elif write.key.startswith(keys.decisions(0)[:-16]):
                logged = state_pb2.StoredDecisions.FromString(write.value).decisions
                terms += [
                    f"{decision.action} {decision.instance_id or decision.model} was decided in term "
                    f"{decision.term} while {term} was the newest, at etcd revision {at}"
                    for decision in logged
                    if decision.term != term
                ]
        if any(write.key in instances for write in written):
            gpus += [f"{text} at etcd revision {at}" for text in shared(instances.values())]
    return Breaches(tuple(terms), tuple(gpus))


def shared(instances: Iterable[state_pb2.StoredInstance]) -> Iterator[str]:
    """GPUs that more than one instance has."""
    holders: dict[tuple[str, int], str] = {}
    for instance in instances:
        for index in instance.gpu_indexes:
            other = holders.setdefault((instance.node_id, index), instance.instance_id)
            if other != instance.instance_id:
                yield f"GPU {index} of {instance.node_id} is given to {other} and {instance.instance_id}"
