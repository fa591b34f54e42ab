"""Sizes: what etcd does not take at once is refused with the limit's name, and large states come in pages."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chiron.internal.etcd.v1 import etcd_pb2 as pb
from chiron.store import ConflictError, Kind, TooLargeError, Transaction, UnavailableError
from chiron.store.etcd import Limits
from chiron.store.etcd.methods import RANGE, TXN
from tests.integration.store.etcd_cases import OpenStore, decision, model
from tests.support.etcd_proxy import EtcdProxy
from tests.support.etcd_server import EtcdServer, etcd_members


async def test_a_large_state_is_read_in_pages_at_one_revision(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        writer, reader = open_store(etcd.endpoint), open_store(proxy.endpoint, page_size=7)
        term = await writer.acquire_term()
        names = [f"m{number:03}" for number in range(50)]
        await writer.commit(Transaction(term, puts=tuple(model(name) for name in names)))
        pages: list[int] = []
        third, go_on = asyncio.Event(), asyncio.Event()

        def hold(path: str, request: bytes) -> object:
            if path == RANGE.path:
                pages.append(pb.RangeRequest.FromString(request).revision)
            if len(pages) == 3:
                third.set()
            return go_on.wait() if len(pages) == 3 else None

        proxy.hold = hold
        reading = asyncio.create_task(reader.read())
        await third.wait()
        await writer.commit(
            Transaction(term, puts=(model("m049", desired=9),), deletes=((Kind.MODEL, "m000"),))
        )
        go_on.set()
        snapshot = await reading
        assert snapshot.revision == 1
        assert snapshot.models == {name: model(name) for name in names}
        assert len(pages) == 8
        assert len(set(pages[1:])) == 1


async def test_too_many_records_are_refused_naming_the_limit(etcd: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(etcd.endpoint)
    term = await store.acquire_term()
    fits = tuple(model(f"m{number}") for number in range(125))
    assert await store.commit(Transaction(term, puts=fits, decisions=(decision(1), decision(2)))) == 1
    with pytest.raises(TooLargeError, match=r"129 operations; etcd takes 128 \(--max-txn-ops\)"):
        await store.commit(Transaction(term, puts=(*fits, model("one-more")), decisions=(decision(3),)))
    assert len((await store.read()).models) == 125


async def test_too_many_bytes_are_refused_naming_the_limit(etcd: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(etcd.endpoint)
    term = await store.acquire_term()
    await store.commit(Transaction(term, puts=(model(spec=b"x" * 1_500_000),)))
    with pytest.raises(TooLargeError, match=r"bytes; etcd takes 1572864 \(--max-request-bytes\)"):
        await store.commit(Transaction(term, puts=(model(spec=b"x" * 1_572_864),)))
    assert (await store.read()).revision == 1


async def test_the_servers_own_limits_are_told_as_such(etcd: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(etcd.endpoint, limits=Limits(operations=1000, request_bytes=1 << 30))
    term = await store.acquire_term()
    with pytest.raises(TooLargeError, match="too large"):
        await store.commit(Transaction(term, puts=(model(spec=b"x" * 1_600_000),)))
    with pytest.raises(TooLargeError, match="too many operations"):
        await store.commit(Transaction(term, puts=tuple(model(f"m{number}") for number in range(200))))
    assert not (await store.read()).models


async def test_many_expectations_are_read_at_one_revision(etcd: EtcdServer, open_store: OpenStore) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store = open_store(proxy.endpoint)
        term = await store.acquire_term()
        expect = {(Kind.MODEL, f"m{number}"): 0 for number in range(250)}
        # Two for the term, then the reads of 125 keys each, then the write.
        await store.commit(Transaction(term, puts=(model("m249"),), expect=expect))
        assert proxy.calls[TXN.path] == 2 + 2 + 1
        with pytest.raises(ConflictError) as caught:
            await store.commit(Transaction(term, puts=(model("m249"),), expect=expect))
        assert caught.value.keys == ((Kind.MODEL, "m249"),)


async def test_the_log_of_decisions_stays_bounded_in_etcd_itself(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    store = open_store(etcd.endpoint, decisions_kept=4)
    term = await store.acquire_term()
    for start in range(0, 30, 3):
        three = tuple(map(decision, range(start, start + 3)))
        await store.commit(Transaction(term, decisions=three))
    assert [one.decision_id for one in await store.decisions(limit=9)] == ["d29", "d28", "d27", "d26"]
    kept = etcd.control("get", "--prefix", "--keys-only", f"{prefix}/decisions/").split()
    assert len(kept) == 2


async def test_a_full_disk_refuses_writes_for_certain_and_reads_go_on(
    tmp_path: Path, open_store: OpenStore
) -> None:
    with etcd_members(tmp_path, options=["--quota-backend-bytes=1000000"]) as [etcd]:
        store = open_store(etcd.endpoint)
        term = await store.acquire_term()
        revision = 0

        async def fill() -> None:
            nonlocal revision
            for number in range(100):
                record = model(f"m{number}", spec=b"x" * 100_000)
                revision = await store.commit(Transaction(term, puts=(record,)))

        with pytest.raises(UnavailableError, match="database space exceeded") as caught:
            await fill()
        assert not caught.value.uncertain
        snapshot = await store.read()
        assert snapshot.revision == revision == len(snapshot.models)
