"""Who gets in at the HTTP door: keys, certificates, tenants."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import openai
import pytest

from chiron.auth import certs
from chiron.auth.api_keys import NewKey, key_in
from chiron.auth.settings import AuthSettings, TlsSettings
from chiron.internal.v1 import control_pb2
from chiron.v1 import access_pb2
from services.router.config import RouterConfig
from services.router.http.caller import HttpCaller
from services.router.http.settings import HttpSettings
from tests.support.fake_router_controller import FakeRouterController
from tests.support.http_door import ANY, RawConnection, get, openai_at, post

ASKED = AuthSettings(require=True)


def enrol(controller: FakeRouterController, tenant: str, models: list[str], **fields: object) -> str:
    """A key of a new tenant."""
    key = NewKey.draw()
    controller.table.tenants.append(access_pb2.Tenant(name=tenant, models=models))
    controller.table.keys.append(
        control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant=tenant, **fields)  # type: ignore[arg-type]
    )
    return key.text


async def test_a_tenant_sees_the_models_that_it_may_use(start_worker, start_router, controller) -> None:
    worker = await start_worker("a")
    controller.add("m", [worker])
    controller.add("other")
    one, all_of_them = enrol(controller, "one", ["m"]), enrol(controller, "all", ["*"])
    url = (await start_router(worker, http=ANY, auth=ASKED)).router.http_url
    async with openai_at(url, one) as client:
        assert [model.id for model in (await client.models.list()).data] == ["m"]
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")
    async with openai_at(url, all_of_them) as client:
        assert [model.id for model in (await client.models.list()).data] == ["m", "other"]


async def test_whoever_cannot_say_who_it_is_is_told_what_is_wrong(
    start_worker, start_router, controller
) -> None:
    revoked = enrol(controller, "gone", ["*"], revoked=True)
    url = (await start_router(await start_worker("a"), http=ANY, auth=ASKED)).router.http_url
    for key, code in ((revoked, "api_key_revoked"), (NewKey.draw().text, "invalid_api_key")):
        async with openai_at(url, key) as client:
            with pytest.raises(openai.AuthenticationError) as raised:
                await client.models.list()
            assert raised.value.code == code
    nobody = await get(url, "/v1/models")
    assert (nobody.status, nobody.error["code"]) == (401, "missing_api_key")
    assert "in the header `authorization: Bearer" in nobody.error["message"]
    assert "metadata" not in nobody.error["message"]
    # This door asks for no certificate: none is advised.
    assert "certificate" not in nobody.error["message"]
    assert nobody.headers["www-authenticate"] == "Bearer"
    # Load balancers have no keys.
    assert (await get(url, "/health")).status == 200


async def test_whose_key_is_not_known_is_told_that_an_operator_s_is_none(
    start_worker, start_router, controller, tmp_path: Path
) -> None:
    """The first key of the controllers is one that no router knows: it is told as any unknown key is."""
    known = enrol(controller, "one", ["*"])
    url = (await start_router(await start_worker("a"), http=ANY, auth=ASKED)).router.http_url
    told = set()
    for key in (key_in(tmp_path / "admin.key"), known[:-4] + "AAAA", "no-key-at-all"):
        answer = await get(url, "/v1/models", authorization=f"Bearer {key}")
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        told.add(answer.error["message"])
    [text] = told
    assert "`chiron keys create --tenant`" in text
    assert "`admin_key_file` is for operators, and none for requests" in text


async def test_nobody_s_body_is_read_before_it_is_known_who_sends_it(
    start_worker, start_router, controller
) -> None:
    url = (await start_router(await start_worker("a"), http=ANY, auth=ASKED)).router.http_url
    connection = await RawConnection.open(url)
    connection.send("POST /v1/embeddings HTTP/1.1", "host: door", "content-length: 1000000000")
    assert (await connection.answer()).status == 401
    connection.close()


async def test_who_abandons_too_much_is_turned_away_here_too(start_worker, start_router) -> None:
    router = await start_router(await start_worker("a"), http=ANY, abandoned_per_s=0.5)
    door, url = router.router._placer.door, router.router.http_url
    connection = await RawConnection.open(url)
    host, port = connection.writer.get_extra_info("sockname")
    for _ in range(50):
        door.cancelled(HttpCaller((), (), host, port), asyncio.get_running_loop().time())
    connection.send("GET /v1/models HTTP/1.1", "host: door")
    answer = await connection.answer()
    assert (answer.status, answer.error["code"]) == (429, "too_many_abandoned")
    assert int(answer.headers["retry-after"]) >= 1
    assert door.turned_away == 1
    # Others, on their own connections, go on.
    assert (await get(url, "/v1/models")).status == 200
    connection.close()


async def test_the_door_has_the_router_s_certificate(
    start_worker, start_router, controller, tmp_path: Path
) -> None:
    certs.init(tmp_path, ["localhost", "127.0.0.1"], days=1, authority_days=1)
    certs.issue(tmp_path, "acme", roles=[], tenant="acme", hosts=[], days=1)
    controller.table.tenants.append(access_pb2.Tenant(name="acme", models=["*"]))
    tls = TlsSettings(tmp_path / "ca.pem", tmp_path / "router.pem", tmp_path / "router.key", mutual=True)
    router = await start_router(await start_worker("a"), http=ANY, auth=ASKED, tls=tls)
    url = router.router.http_url
    assert url.startswith("https://")

    acme = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    acme.load_cert_chain(tmp_path / "acme.pem", tmp_path / "acme.key")
    connection = await RawConnection.open(url, ssl=acme)
    connection.send("GET /v1/models HTTP/1.1", "host: door")
    answer = await connection.answer()
    assert (answer.status, [model["id"] for model in answer.json()["data"]]) == (200, ["m"])
    connection.close()

    stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):  # noqa: PT012  # TLS 1.3 tells it upon reading.
        refused = await RawConnection.open(url, ssl=stranger)
        refused.send("GET /v1/models HTTP/1.1", "host: door")
        await refused.answer()


def test_a_door_to_other_hosts_needs_what_the_grpc_door_needs() -> None:
    away = HttpSettings(listen="0.0.0.0:8000")
    with pytest.raises(ValueError, match=r"http\.listen: 0\.0\.0\.0:8000 is reachable from other hosts"):
        RouterConfig(http=away)
    with pytest.raises(ValueError, match="encryption"):
        RouterConfig(http=away, auth=ASKED)
    RouterConfig(http=away, auth=AuthSettings(insecure=True))


async def test_a_post_says_so_too(start_worker, start_router, controller) -> None:
    url = (await start_router(await start_worker("a"), http=ANY, auth=ASKED)).router.http_url
    assert (await post(url, "/v1/embeddings", {"input": "x"})).status == 401
