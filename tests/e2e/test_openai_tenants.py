"""OpenAI's own client at a cluster that asks who calls: tenants, quotas over both doors, routers that die."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from chiron.client import Client
from chiron.cluster import LocalCluster
from chiron.cluster.access_admin import AccessAdmin
from chiron.v1 import access_pb2, cluster_pb2
from tests.support.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
SAID = {"model": "toy", "prompt": "the sea", "max_tokens": 4}


class Guarded:
    """The cluster, and clients of its tenants."""

    def __init__(self, cluster: LocalCluster, admin: AccessAdmin) -> None:
        self.cluster, self.admin = cluster, admin

    def client(self, key: str, router: int = 0, **options: object) -> AsyncOpenAI:
        settings = {"max_retries": 0, **options}
        return AsyncOpenAI(base_url=f"{self.cluster.http_urls[router]}/v1", api_key=key, **settings)

    async def key(self, tenant: str, models: list[str], **quota: float) -> str:
        """A key of a new tenant; in force at both routers once this returns."""
        spec = access_pb2.Tenant(name=tenant, models=models, quota=access_pb2.Quota(**quota))  # type: ignore[arg-type]
        await self.admin.apply_tenant(spec)
        secret = (await self.admin.create_key(tenant)).secret

        async def known(router: int) -> bool:
            async with self.client(secret, router) as client:
                try:
                    return bool((await client.models.list()).object)
                except (openai.AuthenticationError, openai.PermissionDeniedError):
                    return False

        for router in range(2):
            await eventually(lambda router=router: known(router))
        return secret


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    asked = {"auth.require": "true"}
    specs = []
    for name in ("toy", "other"):
        spec = cluster_pb2.ModelSpec(name=name, engine="sim", gpus_per_instance=1, min_instances=1)
        spec.engine_args.update({"profile": "toy", "load_time_s": 0})
        specs.append(spec)
    async with (
        LocalCluster(
            nodes=1,
            gpus=2,
            routers=2,
            directory=tmp_path_factory.mktemp("run"),
            settings={"controller": asked, "router": asked},
            http_port=0,
        ) as cluster,
        AccessAdmin(cluster.controller_address, api_key=cluster.api_key) as admin,
    ):
        await cluster.apply(specs)
        await cluster.wait_ready()
        yield Guarded(cluster, admin)


async def test_each_tenant_has_its_models(guarded: Guarded) -> None:
    one, both = await guarded.key("one", ["toy"]), await guarded.key("both", ["*"])
    async with guarded.client(one) as client:
        assert [model.id async for model in client.models.list()] == ["toy"]
        assert (await client.completions.create(**SAID)).usage.completion_tokens == 4
        with pytest.raises(openai.PermissionDeniedError) as raised:
            await client.completions.create(**{**SAID, "model": "other"})
        assert raised.value.code == "permission_denied"
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="toy", input="the sea")
    async with guarded.client(both, 1) as client:
        assert [model.id async for model in client.models.list()] == ["other", "toy"]


async def test_a_stranger_is_told_so_by_the_client_that_blocks(guarded: Guarded) -> None:
    def ask() -> None:
        with OpenAI(base_url=f"{guarded.cluster.http_urls[0]}/v1", api_key="ck_nobody") as client:
            client.completions.create(**SAID)

    with pytest.raises(openai.AuthenticationError) as raised:
        await asyncio.to_thread(ask)
    assert raised.value.code == "invalid_api_key"


async def test_both_doors_take_of_one_quota(guarded: Guarded) -> None:
    key = await guarded.key("small", ["toy"], requests_per_s=0.02)
    # One at once, then one in fifty seconds.
    async with Client(guarded.cluster.router_addresses[:1], api_key=key) as client:
        assert (await client.complete(**SAID)).text
    async with guarded.client(key) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            await client.completions.create(**SAID)
    assert (raised.value.code, raised.value.type) == ("quota_exceeded", "rate_limit_error")
    assert 1 < int(raised.value.response.headers["retry-after"]) <= 50


async def test_a_client_that_waits_as_it_is_told_is_served(guarded: Guarded) -> None:
    key = await guarded.key("patient", ["toy"], requests_per_s=2.0)
    async with guarded.client(key, max_retries=10) as client:
        answers = await asyncio.gather(*(client.completions.create(**SAID) for _ in range(4)))
    assert {answer.usage.completion_tokens for answer in answers} == {4}


async def test_a_router_that_was_killed_is_there_again_under_its_url(guarded: Guarded) -> None:
    key = await guarded.key("steady", ["toy"])
    urls = guarded.cluster.http_urls
    async with guarded.client(key, max_retries=20) as client:
        assert (await client.completions.create(**SAID)).choices[0].text
        router = guarded.cluster.processes["router-0"]
        router.kill()
        await router.wait()
        answer = asyncio.create_task(client.completions.create(**SAID))
        await guarded.cluster.start_again("router-0")
        assert (await answer).usage.completion_tokens == 4
    assert guarded.cluster.http_urls == urls
