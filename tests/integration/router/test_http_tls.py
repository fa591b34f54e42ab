"""TLS at the HTTP door, with certificates made here: who gets through, who does not, what silence costs."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from chiron.auth import certs
from chiron.auth.settings import AuthSettings, TlsSettings
from chiron.v1 import access_pb2
from services.router.http.server import HttpServer
from tests.support.http_door import ANY, RawConnection, openai_at
from tests.support.wait import eventually

HOSTS = ["localhost", "127.0.0.1"]
StartDoor = Callable[..., Awaitable[tuple[str, HttpServer]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Certificates of the cluster, of its tenant `acme`, and of an authority that it does not know."""
    for name in ("ours", "theirs"):
        certs.init(tmp_path / name, HOSTS, days=1, authority_days=1)
        certs.issue(tmp_path / name, "acme", roles=[], tenant="acme", hosts=[], days=1)
    certs.issue(tmp_path / "ours", "late", roles=[], tenant="acme", hosts=[], days=0)
    return tmp_path


@pytest.fixture
def start_door(start_worker, start_router, controller, folder: Path) -> StartDoor:
    async def start(*, mutual: bool = True, **limits: object) -> tuple[str, HttpServer]:
        ours = folder / "ours"
        tls = TlsSettings(ours / "ca.pem", ours / "router.pem", ours / "router.key", mutual=mutual)
        controller.table.tenants.append(access_pb2.Tenant(name="acme", models=["*"]))
        options: dict[str, Any] = {"http": dataclasses.replace(ANY, **limits), "tls": tls}
        if mutual:
            options["auth"] = AuthSettings(require=True)
        router = await start_router(await start_worker("a"), **options)
        return router.router.http_url, router.router._http

    return start


def client_of(folder: Path, trusts: str = "ours", shows: str = "") -> ssl.SSLContext:
    """What a client trusts, and the certificate that it shows as folder/name; empty: none."""
    context = ssl.create_default_context(cafile=str(folder / trusts / "ca.pem"))
    if shows:
        context.load_cert_chain(folder / f"{shows}.pem", folder / f"{shows}.key")
    return context


async def models(url: str, context: ssl.SSLContext) -> list[str]:
    """What OpenAI's client sees there, which has the key `none`."""
    async with (
        openai.DefaultAsyncHttpxClient(verify=context) as http,
        openai_at(url, http_client=http) as client,
    ):
        return [one.id async for one in client.models.list()]


async def test_openai_s_client_reaches_the_door_by_its_certificate(start_door: StartDoor, folder) -> None:
    url, server = await start_door()
    assert url.startswith("https://")
    assert await models(url, client_of(folder, shows="ours/acme")) == ["m"]
    assert await models(url.replace("127.0.0.1", "localhost"), client_of(folder, shows="ours/acme")) == ["m"]
    await eventually(lambda: server.hosts.count == 0)


async def test_without_mutual_tls_nobody_has_to_show_one(start_door: StartDoor, folder) -> None:
    url, _ = await start_door(mutual=False)
    assert await models(url, client_of(folder)) == ["m"]


async def test_a_certificate_of_no_tenant_is_told_that_a_tenants_would_do(
    start_door: StartDoor, folder
) -> None:
    url, _ = await start_door()
    with pytest.raises(openai.AuthenticationError, match="or present a client certificate of a tenant"):
        await models(url, client_of(folder, shows="ours/worker"))


@pytest.mark.parametrize("shows", ["", "theirs/acme", "ours/late"], ids=["none", "foreign", "expired"])
async def test_a_certificate_that_does_not_count_gets_nowhere(
    start_door: StartDoor, folder, shows: str
) -> None:
    url, server = await start_door()
    with pytest.raises(openai.APIConnectionError):
        await models(url, client_of(folder, shows=shows))
    await eventually(lambda: server.refused["tls_handshake"] == 1)
    await eventually(lambda: server.hosts.count == 0)
    assert await models(url, client_of(folder, shows="ours/acme")) == ["m"]


async def test_a_client_that_knows_another_authority_does_not_trust_the_door(
    start_door: StartDoor, folder
) -> None:
    url, server = await start_door(mutual=False)
    with pytest.raises(openai.APIConnectionError):
        await models(url, client_of(folder, trusts="theirs"))
    await eventually(lambda: server.refused["tls_handshake"] == 1)


async def test_plain_http_is_ended_and_counted(start_door: StartDoor) -> None:
    url, server = await start_door(mutual=False)
    with pytest.raises(openai.APIConnectionError):
        await openai_at(url.replace("https://", "http://")).models.list()
    await eventually(lambda: server.refused["tls_handshake"] == 1)


async def test_connections_in_their_handshake_have_places(start_door: StartDoor, folder) -> None:
    url, server = await start_door(mutual=False, connections=4)
    silent = [await RawConnection.open(url) for _ in range(2)]
    await eventually(lambda: server.hosts.count == 2)
    with pytest.raises(openai.APIConnectionError):
        await models(url, client_of(folder))
    assert server.refused["too_many_connections"] == 1
    for one in silent:
        one.close()
    await eventually(lambda: server.hosts.count == 0)
    assert await models(url, client_of(folder)) == ["m"]


async def test_a_handshake_has_to_end_in_time(start_door: StartDoor) -> None:
    url, server = await start_door(mutual=False, header_s=0.2)
    silent = await RawConnection.open(url)
    assert await silent.closed() == b""
    silent.close()
    await eventually(lambda: server.hosts.count == 0)
    assert server.refused["tls_handshake"] == 1


async def test_a_stop_waits_for_no_handshake(start_worker, start_router, folder: Path) -> None:
    ours = folder / "ours"
    tls = TlsSettings(ours / "ca.pem", ours / "router.pem", ours / "router.key")
    router = (await start_router(await start_worker("a"), http=ANY, tls=tls)).router
    silent = await RawConnection.open(router.http_url)
    await eventually(lambda: router._http.hosts.count == 1)
    await router.stop()
    assert await silent.closed() == b""
    silent.close()
    with pytest.raises(ConnectionError):
        await RawConnection.open(router.http_url)
