"""Cluster state: one contract, several implementations, one conformance suite."""

from chiron.store.contract import (
    CompactedError,
    ConflictError,
    FencedError,
    RefusedError,
    Store,
    TooLargeError,
    Transaction,
    UnavailableError,
)
from chiron.store.memory import MemoryStore
from chiron.store.records import (
    TICKET_KEYS,
    Change,
    DecisionRecord,
    GpuRecord,
    InstanceRecord,
    Key,
    Kind,
    ModelRecord,
    NodeRecord,
    Observed,
    Record,
    Snapshot,
    TicketKeysRecord,
)
from chiron.store.rolls import Roll, SpecVersion

__all__ = [
    "TICKET_KEYS",
    "Change",
    "CompactedError",
    "ConflictError",
    "DecisionRecord",
    "FencedError",
    "GpuRecord",
    "InstanceRecord",
    "Key",
    "Kind",
    "MemoryStore",
    "ModelRecord",
    "NodeRecord",
    "Observed",
    "Record",
    "RefusedError",
    "Roll",
    "Snapshot",
    "SpecVersion",
    "Store",
    "TicketKeysRecord",
    "TooLargeError",
    "Transaction",
    "UnavailableError",
]
