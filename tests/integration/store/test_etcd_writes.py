"""Writes: fenced, exactly once whatever is lost on the way, and within etcd's limits."""

from __future__ import annotations

import asyncio

import pytest

from chiron.store import ConflictError, FencedError, Kind, Transaction, UnavailableError
from chiron.store.etcd import Connection
from chiron.store.etcd.head import Heads
from chiron.store.etcd.keys import Keys
from tests.integration.store.etcd_cases import OpenStore, decision, follow, model, write
from tests.support.etcd_proxy import EtcdProxy, Fate, writes
from tests.support.etcd_server import EtcdServer, settings
from tests.support.wait import eventually


def losing(proxy: EtcdProxy, fates: list[Fate]) -> None:
    """The next writes meet these fates, the later ones none."""

    def fate(path: str, request: bytes) -> Fate:
        return fates.pop(0) if fates and writes(path, request) else Fate.PASS

    proxy.fate = fate


async def commits(etcd: EtcdServer, prefix: str) -> int:
    """How many commits etcd has carried out below the prefix."""
    connection = Connection(settings(etcd.endpoint))
    head, _ = await Heads(connection, Keys(prefix).head).at()
    await connection.close()
    return head.version


# Answers and requests that are lost


@pytest.mark.parametrize(
    "fates",
    [
        [Fate.LOSE_ANSWER],
        [Fate.LOSE_REQUEST],
        [Fate.LOSE_REQUEST, Fate.LOSE_REQUEST, Fate.LOSE_ANSWER],
    ],
    ids=lambda fates: "-".join(fate.name.lower() for fate in fates),
)
async def test_a_commit_whose_call_breaks_happens_exactly_once(
    etcd: EtcdServer, open_store: OpenStore, prefix: str, fates: list[Fate]
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store = open_store(proxy.endpoint)
        term = await store.acquire_term()
        await write(store, term, 1)
        losing(proxy, fates)
        revision = await store.commit(
            Transaction(
                term, puts=(model(desired=7),), expect={(Kind.MODEL, "chat"): 1}, decisions=(decision(1),)
            )
        )
        assert not fates
        assert revision == 2
        assert (await store.read()).models["chat"].desired_instances == 7
        assert [one.decision_id for one in await store.decisions(limit=9)] == ["d1"]
        assert await commits(etcd, prefix) == 2


async def test_a_lost_answer_is_read_back_and_not_sent_again(etcd: EtcdServer, open_store: OpenStore) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store = open_store(proxy.endpoint)
        term = await store.acquire_term()
        sent: list[bytes] = []

        def fate(path: str, request: bytes) -> Fate:
            if not writes(path, request):
                return Fate.PASS
            sent.append(request)
            return Fate.LOSE_ANSWER

        proxy.fate = fate
        assert await write(store, term, 1) == 1
        assert len(sent) == 1


async def test_a_commit_is_recognised_although_others_have_followed_it(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store, other = open_store(proxy.endpoint), open_store(etcd.endpoint)
        term = await store.acquire_term()
        lost, go_on = asyncio.Event(), asyncio.Event()

        def fate(path: str, request: bytes) -> Fate:
            if writes(path, request):
                lost.set()
                # Nothing is read back until the others have written.
                proxy.fate = lambda path, request: Fate.PASS if go_on.is_set() else Fate.LOSE_REQUEST
                return Fate.LOSE_ANSWER
            return Fate.PASS

        proxy.fate = fate
        committing = asyncio.create_task(write(store, term, 1))
        await lost.wait()
        newer = await other.acquire_term()

        async def arrived() -> bool:
            return (await other.read()).revision == 1

        await eventually(arrived)
        await write(other, newer, 3, first=1)
        go_on.set()
        assert await committing == 1
        assert (await store.read()).revision == 4


async def test_a_commit_that_never_arrived_and_was_overtaken_is_fenced(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store, other = open_store(proxy.endpoint), open_store(etcd.endpoint)
        term = await store.acquire_term()
        lost, go_on = asyncio.Event(), asyncio.Event()

        def fate(path: str, request: bytes) -> Fate:
            lost.set()
            return Fate.PASS if go_on.is_set() or not writes(path, request) else Fate.LOSE_REQUEST

        proxy.fate = fate
        committing = asyncio.create_task(store.commit(Transaction(term, puts=(model("late"),))))
        await lost.wait()
        await write(other, await other.acquire_term(), 2)
        go_on.set()
        with pytest.raises(FencedError):
            await committing
        assert set((await store.read()).models) == {"chat"}


async def test_without_any_answer_a_commit_says_that_its_outcome_is_not_known(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store = open_store(settings(proxy.endpoint, patience_s=0.2))
        term = await store.acquire_term()
        dead = False

        def fate(path: str, request: bytes) -> Fate:
            nonlocal dead
            dead = dead or writes(path, request)
            return Fate.LOSE_REQUEST if dead else Fate.PASS

        proxy.fate = fate
        with pytest.raises(UnavailableError) as caught:
            await write(store, term, 1)
        assert caught.value.uncertain


async def test_a_read_that_fails_names_the_member_and_leaves_nothing_uncertain(
    open_store: OpenStore,
) -> None:
    async with EtcdProxy("127.0.0.1:1") as proxy:
        store = open_store(settings(proxy.endpoint, patience_s=0.2))
        with pytest.raises(UnavailableError, match=proxy.endpoint) as caught:
            await store.read()
        assert not caught.value.uncertain


async def test_a_lost_term_is_acquired_once_more_or_recognised(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        store = open_store(proxy.endpoint, clock_ms=lambda: 0)
        for number, fates in enumerate(([Fate.LOSE_ANSWER], [Fate.LOSE_REQUEST]), start=1):
            losing(proxy, fates)
            assert await store.acquire_term() == number
            await write(store, number, 1)


# Terms and fencing


async def test_of_two_writers_the_older_is_fenced_in_the_midst_of_its_commit(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        older, newer = open_store(proxy.endpoint), open_store(etcd.endpoint)
        term = await older.acquire_term()
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def take_over() -> None:
            await arrived.wait()
            await newer.acquire_term()
            go_on.set()

        def fate(path: str, request: bytes) -> Fate:
            # The older writer has read its own term as the newest, and holds the write in its hand.
            arrived.set()
            return Fate.PASS

        proxy.fate = fate
        proxy.hold = lambda path, request: go_on.wait() if writes(path, request) else None
        taking = asyncio.create_task(take_over())
        with pytest.raises(FencedError):
            await write(older, term, 1)
        await taking
        assert not (await newer.read()).models


async def test_two_writers_of_one_term_never_give_a_revision_twice(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    async with EtcdProxy(etcd.endpoint) as proxy:
        slow, quick = open_store(proxy.endpoint), open_store(etcd.endpoint)
        term = await slow.acquire_term()
        arrived, go_on = asyncio.Event(), asyncio.Event()

        def hold(path: str, request: bytes) -> object:
            if not writes(path, request):
                return None
            arrived.set()
            return go_on.wait()

        proxy.hold = hold
        writing = asyncio.create_task(slow.commit(Transaction(term, puts=(model("slow"),))))
        await arrived.wait()
        # The slow writer has read revision 0, and reckons with 1 for its own.
        assert await quick.commit(Transaction(term, puts=(model("quick"),))) == 1
        go_on.set()
        assert await writing == 2
        assert await commits(etcd, prefix) == 2


async def test_terms_rise_over_restarts_and_whatever_the_clock_says(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    first = await open_store(etcd.endpoint, clock_ms=lambda: 5_000).acquire_term()
    earlier_clock = await open_store(etcd.endpoint, clock_ms=lambda: 10).acquire_term()
    later_clock = await open_store(etcd.endpoint, clock_ms=lambda: 9_000).acquire_term()
    assert (first, earlier_clock, later_clock) == (5_000, 5_001, 9_000)


async def test_rivals_for_a_term_get_different_ones_and_the_last_alone_writes(
    etcd: EtcdServer, open_store: OpenStore
) -> None:
    stores = [open_store(etcd.endpoint, clock_ms=lambda: 0) for _ in range(6)]
    terms = await asyncio.gather(*(store.acquire_term() for store in stores))
    assert sorted(terms) == [1, 2, 3, 4, 5, 6]
    for store, term in zip(stores, terms, strict=True):
        if term == 6:
            await write(store, term, 1)
        else:
            with pytest.raises(FencedError):
                await write(store, term, 1)


# Revisions and prefixes


async def test_prefixes_that_begin_alike_are_apart_and_each_counts_its_own_changes(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    one, other = open_store(etcd.endpoint), open_store(etcd.endpoint, under=f"{prefix}0")
    term, other_term = await one.acquire_term(), await other.acquire_term()
    assert await write(one, term, 1) == 1
    assert await write(other, other_term, 3, first=5) == 3
    assert await write(one, term, 1, first=1) == 2
    assert [change.revision for change in await follow(one, 0, 2)] == [1, 2]
    assert (await one.read()).models == {"chat": model(desired=1)}
    assert (await other.read()).models == {"chat": model(desired=7)}


async def test_conflicts_are_of_this_prefix_alone(
    etcd: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    one, other = open_store(etcd.endpoint), open_store(etcd.endpoint, under=f"{prefix}/b")
    term = await one.acquire_term()
    await write(other, await other.acquire_term(), 1)
    await one.commit(Transaction(term, puts=(model(),), expect={(Kind.MODEL, "chat"): 0}))
    with pytest.raises(ConflictError):
        await one.commit(Transaction(term, puts=(model(),), expect={(Kind.MODEL, "chat"): 0}))
