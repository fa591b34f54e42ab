"""What the tests of the etcd store write and read."""

from __future__ import annotations

from collections.abc import Callable

from chiron.store import Change, DecisionRecord, ModelRecord, Store, Transaction
from chiron.store.etcd import EtcdStore

OpenStore = Callable[..., EtcdStore]
"""EtcdSettings or endpoints → a store that is closed after the test."""


def model(name: str = "chat", desired: int = 1, spec: bytes = b"spec") -> ModelRecord:
    return ModelRecord(name, spec, spec_version=1, rollout_version=1, desired_instances=desired)


def decision(number: int) -> DecisionRecord:
    return DecisionRecord(
        f"d{number}", 1_700_000_000_000, 1, "place", "chat", "", "", "because", {"n": number}
    )


async def write(store: Store, term: int, count: int, first: int = 0) -> int:
    """So many commits of one model; returns the revision."""
    revision = 0
    for number in range(first, first + count):
        revision = await store.commit(Transaction(term, puts=(model(desired=number),)))
    return revision


async def follow(store: Store, after: int, until: int) -> list[Change]:
    """The changes from one revision to another."""
    changes = []
    if after < until:
        async for change in store.watch(after):
            changes.append(change)
            if change.revision == until:
                break
    return changes
