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
from chiron.store.decisions import DecisionRecord, Need, Outcome
from chiron.store.memory import MemoryStore
from chiron.store.records import (
    TICKET_KEYS,
    ApiKeyRecord,
    AutoscalingOrders,
    Change,
    GpuRecord,
    InstanceRecord,
    Key,
    Kind,
    ModelRecord,
    NodeRecord,
    Observed,
    Record,
    Snapshot,
    TenantRecord,
    TicketKeysRecord,
)
from chiron.store.rolls import Roll, SpecVersion

__all__ = [
    "TICKET_KEYS",
    "ApiKeyRecord",
    "AutoscalingOrders",
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
    "Need",
    "NodeRecord",
    "Observed",
    "Outcome",
    "Record",
    "RefusedError",
    "Roll",
    "Snapshot",
    "SpecVersion",
    "Store",
    "TenantRecord",
    "TicketKeysRecord",
    "TooLargeError",
    "Transaction",
    "UnavailableError",
]
