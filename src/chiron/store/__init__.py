"""Cluster state: one contract, several implementations, one conformance suite."""

from chiron.store.contract import CompactedError, ConflictError, FencedError, Store, Transaction
from chiron.store.memory import MemoryStore
from chiron.store.records import (
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
)

__all__ = [
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
    "Snapshot",
    "Store",
    "Transaction",
]
