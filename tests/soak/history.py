"""Checks the whole history of the cluster's state in etcd. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from chiron.internal.v1 import control_pb2, state_pb2
from chiron.store.etcd.keys import Keys
from chiron.v1 import types_pb2


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
    handovers: tuple[str, ...] = ()
    """Invariant 5: what serves is replaced only while at most one other of those wanted is missing."""


def check(writes: Iterable[Write], prefix: str) -> Breaches:
    """Goes through the history, transaction by transaction."""
    keys = Keys(prefix)
    state = _State()
    terms: list[str] = []
    gpus: list[str] = []
    handovers: list[str] = []
    for at, group in groupby(writes, key=lambda write: write.revision):
        written = list(group)
        for write in written:
            if write.key == keys.term and write.value is not None:
                new = state_pb2.StoredTerm.FromString(write.value).term
                if new <= state.term:
                    terms.append(f"term {new} follows {state.term} at etcd revision {at}")
                state.term = new
        before = dict(state.instances)
        logged: list[state_pb2.StoredDecision] = []
        for write in written:
            if write.value is None:
                state.instances.pop(write.key, None)
            elif write.key == keys.head:
                head = state_pb2.StoredHead.FromString(write.value).revision
                if head not in (state.revision, state.revision + 1):
                    terms.append(f"revision {head} follows {state.revision} at etcd revision {at}")
                state.revision = head
            elif write.key.startswith(keys.state):
                state.put(write.key, state_pb2.StoredRecord.FromString(write.value))
            elif write.key.startswith(keys.decisions(0)[:-16]):
                logged += state_pb2.StoredDecisions.FromString(write.value).decisions
        terms += [
            f"{decision.action} {decision.instance_id or decision.model} was decided in term "
            f"{decision.term} while {state.term} was the newest, at etcd revision {at}"
            for decision in logged
            if decision.term != state.term
        ]
        if any(write.key in state.instances for write in written):
            gpus += [f"{text} at etcd revision {at}" for text in shared(state.instances.values())]
        replaced = {decision.instance_id for decision in logged if decision.action == "replace"}
        handovers += [f"{text} at etcd revision {at}" for text in state.hasty(before, replaced)]
    return Breaches(tuple(terms), tuple(gpus), tuple(handovers))


@dataclass(slots=True)
class _State:
    """What is on record after some transaction."""

    instances: dict[bytes, state_pb2.StoredInstance] = field(default_factory=dict)
    desired: dict[str, int] = field(default_factory=dict)
    """Instances that each model should have."""
    term: int = 0
    revision: int = 0

    def put(self, key: bytes, record: state_pb2.StoredRecord) -> None:
        """A record has been written."""
        match record.WhichOneof("record"):
            case "instance":
                self.instances[key] = record.instance
            case "model":
                self.desired[record.model.name] = record.model.desired_instances

    def hasty(self, before: Mapping[bytes, state_pb2.StoredInstance], replaced: set[str]) -> Iterator[str]:
        """Those of the replaced that served before the last transaction and should have been left to."""
        for key, was in before.items():
            now = self.instances.get(key)
            stopped = now is not None and _serves(was) and now.desired == control_pb2.DESIRED_STATE_STOPPED
            if stopped and was.instance_id in replaced:
                wanted = self.desired.get(was.model, 0)
                left = sum(_serves(one) for one in self.instances.values() if one.model == was.model)
                if left < wanted - 1:
                    yield f"{was.instance_id} was replaced while {left} of {wanted} others served"


def _serves(instance: state_pb2.StoredInstance) -> bool:
    ready = instance.observed.state == types_pb2.INSTANCE_STATE_READY
    return ready and instance.desired != control_pb2.DESIRED_STATE_STOPPED


def shared(instances: Iterable[state_pb2.StoredInstance]) -> Iterator[str]:
    """GPUs that more than one instance has.

    One that has FAILED has none: its agent says so once no process of it is left, and the record still tells
    where it was.
    """
    holders: dict[tuple[str, int], str] = {}
    for instance in instances:
        if instance.observed.state == types_pb2.INSTANCE_STATE_FAILED:
            continue
        for index in instance.gpu_indexes:
            other = holders.setdefault((instance.node_id, index), instance.instance_id)
            if other != instance.instance_id:
                yield f"GPU {index} of {instance.node_id} is given to {other} and {instance.instance_id}"
