"""The etcd store fulfils the contract, on one member and on three."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from itertools import count

import pytest

from chiron.store import Store, Transaction
from chiron.store.etcd import Connection, EtcdStore
from tests.conformance.store_suite import DECISIONS_KEPT, HISTORY_KEPT, MODEL, MakeStore, StoreSuite
from tests.support.etcd_server import EtcdServer, etcd_members, settings

_prefixes = count()


@pytest.fixture(scope="module")
def one_member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EtcdServer]]:
    with etcd_members(tmp_path_factory.mktemp("etcd")) as members:
        yield members


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EtcdServer]]:
    with etcd_members(tmp_path_factory.mktemp("etcd"), 3) as members:
        yield members


class EtcdSuite(StoreSuite):
    """Each test has a prefix of its own in an etcd that they share."""

    @pytest.fixture
    def make_store(self, members: list[EtcdServer]) -> MakeStore:
        async def make() -> Store:
            connection = Connection(settings(*(member.endpoint for member in members)))
            return EtcdStore(
                connection,
                f"/test/{next(_prefixes)}",
                decisions_kept=DECISIONS_KEPT,
                changes_buffered=HISTORY_KEPT // 2,
                page_size=2,
            )

        return make

    @pytest.fixture(autouse=True)
    def _known(self, members: list[EtcdServer]) -> None:
        self._members = members

    async def compact(self, store: Store, term: int) -> None:
        """More changes than a slow watch buffers, then etcd's own compaction."""
        revision = (await store.read()).revision
        async with aclosing(store.watch(revision)) as others:  # type: ignore[type-var]
            for _ in range(HISTORY_KEPT + 1):
                revision = await store.commit(Transaction(term, puts=(MODEL,)))
            async for change in others:
                if change.revision == revision:
                    break
        newest = self._members[0].control("get", "--write-out=fields", "none")
        [etcd_revision] = [line.split()[-1] for line in newest.splitlines() if line.startswith('"Revision"')]
        self._members[0].control("compact", etcd_revision)


class TestOnOneMember(EtcdSuite):
    @pytest.fixture
    def members(self, one_member: list[EtcdServer]) -> list[EtcdServer]:
        return one_member


class TestOnThreeMembers(EtcdSuite):
    @pytest.fixture
    def members(self, three_members: list[EtcdServer]) -> list[EtcdServer]:
        return three_members
