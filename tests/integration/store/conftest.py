"""Stores on real etcd servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from chiron.store.etcd import Connection, EtcdSettings, EtcdStore
from tests.integration.store.etcd_cases import OpenStore
from tests.support.etcd_server import EtcdServer, etcd_members, settings

_prefixes = count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One member that a module's tests share; none of them stops it."""
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members[0]


@pytest.fixture
def prefix() -> str:
    """No other test has it."""
    return f"/case/{next(_prefixes)}"


@pytest.fixture
async def open_store(prefix: str) -> AsyncIterator[OpenStore]:
    stores: list[EtcdStore] = []

    def open_store(*where: EtcdSettings | str, under: str = prefix, **options: object) -> EtcdStore:
        chosen = where[0] if isinstance(where[0], EtcdSettings) else settings(*map(str, where))
        store = EtcdStore(Connection(chosen), under, **options)  # type: ignore[arg-type]
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        await store.close()


@pytest.fixture
def etcd_alone(tmp_path: Path) -> Iterator[EtcdServer]:
    """A member of the test's own, to be stopped at will."""
    with etcd_members(tmp_path / "etcd") as members:
        yield members[0]
