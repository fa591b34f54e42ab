"""Who may reach etcd: users with passwords, tokens that end, certificates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from chiron.store import RefusedError, UnavailableError
from chiron.store.etcd import TlsFiles
from chiron.store.etcd.methods import AUTHENTICATE, WATCH
from tests.integration.store.etcd_cases import OpenStore, follow, write
from tests.support.etcd_proxy import EtcdProxy
from tests.support.etcd_server import TLS, EtcdServer, etcd_members, settings

USER = {"user": "chiron", "password": "a secret"}


def protect(etcd: EtcdServer, prefix: str) -> None:
    """Lets the user `chiron` use the prefix and nobody without a password anything."""
    etcd.control("user", "add", "root:root")
    etcd.control("user", "grant-role", "root", "root")
    etcd.control("role", "add", "writer")
    etcd.control("role", "grant-permission", "writer", "readwrite", "--prefix", prefix)
    etcd.control("user", "add", "chiron:a secret")
    etcd.control("user", "grant-role", "chiron", "writer")
    etcd.control("auth", "enable")


async def test_a_restarted_server_forgets_the_token_and_every_call_still_succeeds(
    tmp_path: Path, open_store: OpenStore, prefix: str
) -> None:
    # Tokens live in the log alone: a snapshot has none.
    async with AsyncExitStack() as stack:
        [etcd] = stack.enter_context(etcd_members(tmp_path, options=["--snapshot-count=5"]))
        await asyncio.to_thread(protect, etcd, prefix)
        proxy = await stack.enter_async_context(EtcdProxy(etcd.endpoint))
        store = open_store(settings(proxy.endpoint, **USER))
        term = await store.acquire_term()
        assert await write(store, term, 1) == 1
        assert await write(store, term, 19) == 20
        assert proxy.calls[AUTHENTICATE.path] == 1
        etcd.kill()
        await asyncio.to_thread(etcd.start)
        assert await write(store, term, 1) == 21
        assert proxy.calls[AUTHENTICATE.path] == 2
        assert len(await follow(store, 0, 21)) == 21


def forget_tokens(etcd: EtcdServer) -> None:
    """The server knows no token any more; connections and streams stay."""
    etcd.control("--user=root:root", "auth", "disable")
    etcd.control("auth", "enable")


async def test_a_token_that_has_ended_is_renewed_once_for_calls_and_once_for_the_watches(
    etcd_alone: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    await asyncio.to_thread(protect, etcd_alone, prefix)
    async with EtcdProxy(etcd_alone.endpoint) as proxy:
        store = open_store(settings(proxy.endpoint, **USER))
        term = await store.acquire_term()
        first = aiter(store.watch(0))
        coming = asyncio.ensure_future(anext(first))
        await write(store, term, 1)
        assert (await coming).revision == 1
        assert proxy.calls[AUTHENTICATE.path] == 1
        await asyncio.to_thread(forget_tokens, etcd_alone)
        assert await write(store, term, 1) == 2
        assert proxy.calls[AUTHENTICATE.path] == 2
        # The stream still has the token with which it was opened.
        assert proxy.calls[WATCH.path] == 1
        assert [change.revision for change in await follow(store, 0, 2)] == [1, 2]
        assert proxy.calls[WATCH.path] == 2
        assert proxy.calls[AUTHENTICATE.path] == 3
        assert (await anext(first)).revision == 2


async def test_a_wrong_password_is_refused_at_once(
    etcd_alone: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    await asyncio.to_thread(protect, etcd_alone, prefix)
    store = open_store(settings(etcd_alone.endpoint, user="chiron", password="guessed"))
    with pytest.raises(RefusedError, match="invalid user ID or password"):
        await store.read()
    with pytest.raises(RefusedError, match="invalid user ID or password"):
        await anext(aiter(store.watch(0)))


async def test_without_a_password_and_outside_the_users_prefix_nothing_is_read(
    etcd_alone: EtcdServer, open_store: OpenStore, prefix: str
) -> None:
    await asyncio.to_thread(protect, etcd_alone, prefix)
    with pytest.raises(RefusedError):
        await open_store(etcd_alone.endpoint).read()
    outside = open_store(settings(etcd_alone.endpoint, **USER), under="/elsewhere")
    with pytest.raises(RefusedError, match="permission denied"):
        await outside.acquire_term()


async def test_a_user_where_etcd_asks_for_none_is_told(etcd: EtcdServer, open_store: OpenStore) -> None:
    store = open_store(settings(etcd.endpoint, **USER))
    with pytest.raises(RefusedError, match="authentication is not enabled"):
        await store.read()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_members(tmp_path_factory.mktemp("secured"), tls=True) as members:
        yield members[0]


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsFiles]:
    """A client certificate that etcd itself has made for another cluster at this moment."""
    folder = tmp_path_factory.mktemp("stranger")
    with etcd_members(folder, options=["--peer-auto-tls", "--auto-tls"]):
        made = next(folder.glob("**/fixtures/*/cert.pem")).parent
        yield TlsFiles(ca=TLS / "ca.pem", certificate=made / "cert.pem", key=made / "key.pem")


OURS = TlsFiles(ca=TLS / "ca.pem", certificate=TLS / "client.pem", key=TLS / "client.key")


async def test_with_certificates_of_one_authority_both_sides_agree(
    secured: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(settings(secured.endpoint, tls=OURS))
    following = asyncio.create_task(follow(store, 0, 2))
    assert await write(store, await store.acquire_term(), 2) == 2
    assert len(await following) == 2


async def test_a_client_without_a_certificate_is_turned_away(
    secured: EtcdServer, open_store: OpenStore
) -> None:
    store = open_store(settings(secured.endpoint, tls=TlsFiles(ca=OURS.ca), patience_s=0.5))
    with pytest.raises(UnavailableError):
        await store.read()


async def test_a_client_of_another_authority_is_turned_away(
    secured: EtcdServer, open_store: OpenStore, stranger: TlsFiles
) -> None:
    store = open_store(settings(secured.endpoint, tls=stranger, patience_s=0.5))
    with pytest.raises(UnavailableError):
        await store.read()


async def test_a_server_of_another_authority_is_not_trusted(
    secured: EtcdServer, open_store: OpenStore, stranger: TlsFiles
) -> None:
    assert stranger.certificate is not None
    trusts_another = TlsFiles(ca=stranger.certificate, certificate=OURS.certificate, key=OURS.key)
    store = open_store(settings(secured.endpoint, tls=trusts_another, patience_s=0.5))
    with pytest.raises(UnavailableError, match=secured.endpoint):
        await store.read()


async def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, open_store: OpenStore) -> None:
    missing = TlsFiles(ca=tmp_path / "none.pem")
    with pytest.raises(ValueError, match=r"tls\.ca: cannot read .*none\.pem: No such file"):
        open_store(settings("127.0.0.1:1", tls=missing))
