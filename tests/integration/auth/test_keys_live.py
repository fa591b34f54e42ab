"""Keys with limits and defaults of their own, made and changed by the command line; a live cluster."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from chiron.cli import keys
from chiron.cli.key_terms import KeyOptions
from chiron.client import Client, Overloaded, PermissionDenied, Unauthenticated
from chiron.cluster import AdminError, LocalCluster
from chiron.cluster.access_admin import AccessAdmin
from chiron.rpc.identity import Identity, assume
from chiron.v1 import access_pb2, cluster_pb2
from tests.support.http_door import openai_at
from tests.support.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
BOTH_WAYS = pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])


class Live:
    """The cluster, its administrator, and what the command line says."""

    def __init__(self, cluster: LocalCluster, admin: AccessAdmin) -> None:
        self.cluster, self.admin = cluster, admin
        self.controller = cluster.controller_address

    def client(self, secret: str, *, lookaside: bool = True) -> Client:
        return Client(self.cluster.router_addresses, api_key=secret, lookaside=lookaside)

    async def reason(self, secret: str) -> str:
        """Why a request of a model that is not the tenant's is refused; it takes nothing of any quota."""
        async with self.client(secret) as client:
            try:
                await ask(client, model="none")
            except Exception as error:
                return str(getattr(error, "reason", error))
        return ""


async def ask(client: Client, **more: object) -> int:
    """Output tokens of an answer."""
    options = {"model": "toy", "prompt": "Tell me.", "max_tokens": 4, "timeout_s": 20.0} | more
    return (await client.complete(**options)).usage.completion_tokens  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    asked = {"auth.require": "true"}
    spec = cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)
    spec.engine_args.update({"load_time_s": 0})
    folder: Path = tmp_path_factory.mktemp("run")
    cluster = LocalCluster(
        nodes=1, gpus=1, directory=folder, http_port=0, settings={"controller": asked, "router": asked}
    )
    async with cluster, AccessAdmin(cluster.controller_address, api_key=cluster.api_key) as admin:
        await cluster.apply([spec])
        await cluster.wait_ready()
        await admin.apply_tenant(access_pb2.Tenant(name="web", models=["toy"]))
        assume(Identity(None, cluster.api_key))
        try:
            yield Live(cluster, admin)
        finally:
            assume(Identity())


Said = Callable[[Awaitable[int]], Awaitable[str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    async def run(command: Awaitable[int]) -> str:
        assert await command == 0
        return capsys.readouterr().out.strip()

    return run


async def create(live: Live, said: Said, **options: object) -> str:
    """A key of tenant web, known to the router."""
    secret: str = await said(keys.create_key(live.controller, "web", "", "", KeyOptions(**options)))
    await eventually(lambda: known(live, secret))
    return secret


async def known(live: Live, secret: str) -> bool:
    return await live.reason(secret) != "KEY_INVALID"


@BOTH_WAYS
async def test_a_keys_class_and_length_are_its_requests_where_they_say_nothing(
    live: Live, said: Said, lookaside: bool
) -> None:
    secret = await create(live, said, request_class="batch", allow_class=("batch",), max_tokens=3)
    async with live.client(secret, lookaside=lookaside) as client:
        assert await ask(client, max_tokens=None, ignore_eos=True) == 3
        with pytest.raises(PermissionDenied, match=f"API key {secret[3:15]} may not use class interactive"):
            await ask(client, request_class="interactive")


@BOTH_WAYS
async def test_a_keys_limit_is_named_and_can_be_raised_while_it_is_in_use(
    live: Live, said: Said, lookaside: bool
) -> None:
    secret = await create(live, said, requests_per_s=0.02)
    key_id = secret[3:15]
    async with live.client(secret, lookaside=lookaside) as client:
        assert await ask(client) == 4
        with pytest.raises(Overloaded, match=f"API key {key_id}") as caught:
            await ask(client)
        assert caught.value.metadata["limit_of"] == "key"
        assert 1.0 < (caught.value.retry_after_s or 0.0) <= 50.0

        async def listed() -> bool:
            return "requests_per_s 9" in await said(keys.list_keys(live.controller, as_json=False))

        await eventually(listed, what="the key is listed as near its limit")
        options = KeyOptions(requests_per_s=1000.0)
        assert f"{key_id}: changed: 1000 requests/s" in await said(
            keys.set_key(live.controller, key_id, options)
        )
        set_at = time.monotonic()

        async def served() -> bool:
            try:
                return await ask(client) == 4
            except Overloaded:
                return False

        await eventually(served, within_s=5.0)
        assert time.monotonic() - set_at < 5.0
        assert "unchanged" in await said(keys.set_key(live.controller, key_id, options))


async def test_a_key_that_ends_is_refused_and_one_whose_end_is_put_off_is_not(live: Live, said: Said) -> None:
    secret = await create(live, said, expires="1s")
    await eventually(lambda: ended(live, secret))
    async with live.client(secret) as client:
        with pytest.raises(Unauthenticated) as caught:
            await ask(client)
        assert caught.value.reason == "KEY_EXPIRED"
    assert "expired" in await said(keys.list_keys(live.controller, as_json=False))
    await said(keys.set_key(live.controller, secret[3:15], KeyOptions(clear=("expires",))))
    await eventually(lambda: not_ended(live, secret))


async def test_an_openai_client_meets_the_same_limits_and_the_same_end(live: Live, said: Said) -> None:
    secret = await create(live, said, requests_per_s=0.02, request_class="batch", allow_class=("batch",))
    asked = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    async with openai_at(live.cluster.http_urls[0], secret) as client:
        assert (await client.chat.completions.create(**asked)).usage.completion_tokens == 2
        with pytest.raises(openai.RateLimitError, match=f"the quota of API key {secret[3:15]}") as limited:
            await client.chat.completions.create(**asked)
        assert 1 < int(limited.value.response.headers["retry-after"]) <= 50
        with pytest.raises(openai.PermissionDeniedError, match="may not use class interactive"):
            await client.chat.completions.create(**asked, service_tier="default")
        await said(keys.set_key(live.controller, secret[3:15], KeyOptions(expires="1s")))
        await eventually(lambda: ended(live, secret))
        with pytest.raises(openai.AuthenticationError, match="expired at"):
            await client.chat.completions.create(**asked)


async def ended(live: Live, secret: str) -> bool:
    return await live.reason(secret) == "KEY_EXPIRED"


async def not_ended(live: Live, secret: str) -> bool:
    return not await ended(live, secret)


async def test_an_administrators_key_ends_too(live: Live) -> None:
    terms = access_pb2.KeyTerms()
    terms.expires.FromMilliseconds(int(1e3 * time.time()) + 1500)
    made = await live.admin.create_key(role=access_pb2.ACCESS_ROLE_ADMIN, terms=terms)
    async with AccessAdmin(live.controller, api_key=made.secret) as second:
        assert await second.list_keys()

        async def refused() -> bool:
            try:
                await second.list_keys()
            except AdminError as error:
                return error.reason == "KEY_EXPIRED"
            return False

        await eventually(refused)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (KeyOptions(allow_model=("secret",)), "'secret' is none of tenant web's"),
        (KeyOptions(requests_per_s=-1.0), "limits.requests_per_s: must be a number >= 0"),
        (KeyOptions(ttft_ms=0.0), "defaults.slo.ttft_ms: must be a number > 0"),
        (
            KeyOptions(request_class="batch", ttft_ms=5.0),
            "defaults.slo.ttft_ms: a key's SLO is for requests of its class, batch",
        ),
        (KeyOptions(expires="2001-01-01"), "expires: must lie in the future"),
    ],
)
async def test_what_does_not_fit_is_one_clear_error(live: Live, options: KeyOptions, error: str) -> None:
    with pytest.raises(AdminError, match=error):
        await keys.create_key(live.controller, "web", "", "", options)
