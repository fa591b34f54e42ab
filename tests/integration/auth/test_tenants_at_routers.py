"""A cluster of real processes that asks who calls: tenants, keys, quotas and administrators."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from chiron.cli import access, keys
from chiron.client import Client, Overloaded, PermissionDenied, Unauthenticated
from chiron.cluster import AdminError, LocalCluster
from chiron.cluster.access_admin import AccessAdmin
from chiron.internal.v1 import control_pb2, control_pb2_grpc
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import reason_of
from chiron.rpc.identity import Identity, assume
from chiron.rpc.servers import open_channel
from chiron.v1 import access_pb2, cluster_pb2
from tests.support.wait import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
_ROOT = Path(__file__).parents[3]
DENIED, UNAUTHENTICATED = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED


class Guarded:
    """The cluster, and calls under a chosen key."""

    def __init__(self, cluster: LocalCluster, admin: AccessAdmin, stack: AsyncExitStack) -> None:
        self.cluster, self.admin, self._stack = cluster, admin, stack
        self.keys: dict[str, str] = {}

    async def key(self, tenant: str, **allowed: object) -> str:
        """A key of a tenant that is made, or changed, here; in force at the router once this returns."""
        spec = access_pb2.Tenant(**({"name": tenant, "models": ["*"]} | allowed))  # type: ignore[arg-type]
        await self.admin.apply_tenant(spec)
        secret = (await self.admin.create_key(tenant)).secret
        await eventually(lambda: self.known(secret))
        return secret

    async def known(self, secret: str) -> bool:
        """Whether the router has heard of the key."""
        try:
            await self.client(secret).complete(model="none", prompt="x", timeout_s=5.0)
        except Unauthenticated:
            return False
        except Exception:
            return True
        return True

    def client(self, api_key: str = "", *, lookaside: bool = True) -> Client:
        client = Client(self.cluster.router_addresses, api_key=api_key, lookaside=lookaside)
        self._stack.push_async_callback(client.close)
        return client


async def ask(client: Client, **more: object) -> str:
    options = {"model": "toy", "prompt": "Tell me.", "max_tokens": 4, "timeout_s": 20.0} | more
    return (await client.complete(**options)).text  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    asked = {"auth.require": "true"}
    spec = cluster_pb2.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)
    spec.engine_args.update({"load_time_s": 0})
    cluster = LocalCluster(
        nodes=1,
        gpus=1,
        directory=tmp_path_factory.mktemp("run"),
        settings={"controller": asked, "router": asked},
    )
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(cluster)
        admin = await stack.enter_async_context(
            AccessAdmin(cluster.controller_address, api_key=cluster.api_key)
        )
        await cluster.apply([spec])
        await cluster.wait_ready()
        yield Guarded(cluster, admin, stack)


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_only_a_key_in_force_opens_the_door(guarded: Guarded, lookaside: bool) -> None:
    secret = await guarded.key("acme")
    assert await ask(guarded.client(secret, lookaside=lookaside))
    for wrong, reason in (("", "CREDENTIALS_MISSING"), (secret[:-4] + "AAAA", "KEY_INVALID")):
        with pytest.raises(Unauthenticated) as caught:
            await ask(guarded.client(wrong, lookaside=lookaside))
        assert caught.value.reason == reason


@pytest.mark.parametrize("method", ["Generate", "Route"])
async def test_what_a_stranger_sends_is_not_even_decoded(guarded: Guarded, method: str) -> None:
    async with open_channel(guarded.cluster.router_addresses[0]) as channel:
        call = channel.unary_unary(f"/chiron.v1.InferenceService/{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff no message")
    assert reason_of(caught.value) == "CREDENTIALS_MISSING"


async def test_a_revoked_key_is_refused_within_about_a_second(guarded: Guarded) -> None:
    secret = await guarded.key("acme")
    client = guarded.client(secret)
    assert await ask(client)
    await guarded.admin.revoke_key(secret.split("_")[1])
    revoked_at = time.monotonic()

    async def refused() -> bool:
        try:
            await ask(client)
        except Unauthenticated as error:
            return error.reason == "KEY_REVOKED"
        return False

    await eventually(refused, within_s=5.0)
    assert time.monotonic() - revoked_at < 5.0


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
@pytest.mark.parametrize(
    ("allowed", "asked"),
    [
        ({"models": ["other"]}, {}),
        ({"classes": ["REQUEST_CLASS_BATCH"]}, {}),
        ({"classes": ["REQUEST_CLASS_INTERACTIVE"]}, {"request_class": "batch"}),
        ({"most_urgent_priority": 0}, {"priority": -1}),
    ],
    ids=["model", "interactive", "batch", "priority"],
)
async def test_what_a_tenant_may_not_ask_for_is_refused(
    guarded: Guarded, lookaside: bool, allowed: dict, asked: dict
) -> None:
    client = guarded.client(await guarded.key("narrow", **allowed), lookaside=lookaside)
    with pytest.raises(PermissionDenied) as caught:
        await ask(client, **asked)
    assert caught.value.reason == "NOT_ALLOWED"


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_requests_at_once_are_counted_to_their_end(guarded: Guarded, lookaside: bool) -> None:
    secret = await guarded.key(f"one-at-a-time-{lookaside}".lower(), quota=access_pb2.Quota(concurrent=1))
    client = guarded.client(secret, lookaside=lookaside)
    stream = client.generate(model="toy", prompt="Long.", max_tokens=4000, ignore_eos=True)
    async with stream:
        await anext(stream)
        with pytest.raises(Overloaded) as caught:
            await ask(client)
        assert (caught.value.reason, caught.value.retry_after_s) == ("QUOTA_EXCEEDED", 1.0)

    async def served() -> bool:
        try:
            return bool(await ask(client))
        except Overloaded:
            return False

    await eventually(served, what="the slot is free again once the stream has been cancelled")


async def test_requests_a_second_and_tokens_a_minute_name_the_time_to_wait(guarded: Guarded) -> None:
    slow = guarded.client(await guarded.key("slow", quota=access_pb2.Quota(requests_per_s=0.05)))
    await asyncio.gather(ask(slow), return_exceptions=True)
    with pytest.raises(Overloaded) as caught:
        await ask(slow)
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert 1.0 < (caught.value.retry_after_s or 0.0) <= 20.0
    short = guarded.client(await guarded.key("short", quota=access_pb2.Quota(tokens_per_min=100)))
    assert await ask(short, max_tokens=60)
    with pytest.raises(Overloaded) as caught:
        await ask(short, max_tokens=60)
    assert 1.0 < (caught.value.retry_after_s or 0.0) <= 60.0


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_a_chat_s_tools_count_towards_the_tokens_and_are_let_through(
    guarded: Guarded, lookaside: bool
) -> None:
    quota = access_pb2.Quota(tokens_per_min=6000, default_max_tokens=1)
    client = guarded.client(await guarded.key(f"tools-{lookaside}".lower(), quota=quota), lookaside=lookaside)
    tool = {"type": "function", "function": {"name": "f", "description": "word " * 2500}}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "tools": [tool], "prompt": None}
    assert await ask(client, **chat)
    with pytest.raises(Overloaded, match="6000 tokens a minute"):
        await ask(client, **chat)


async def test_a_stream_whose_worker_dies_goes_on_within_a_quota_that_it_has_used_up(
    guarded: Guarded,
) -> None:
    # The key itself is tried out with a request, which counts for 1,024 tokens.
    quota = access_pb2.Quota(concurrent=1, tokens_per_min=2500)
    client = guarded.client(await guarded.key("frugal", quota=quota))
    (worker,) = guarded.cluster.workers()
    tokens = 0
    async for chunk in client.generate(
        model="toy", prompt="x", max_tokens=1000, ignore_eos=True, timeout_s=40.0
    ):
        tokens += len(chunk.token_ids)
        if worker.alive:
            worker.kill()
    assert (tokens, client.stats.resumed) == (1000, 1)
    with pytest.raises(Overloaded):
        await ask(client, max_tokens=2400)


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_a_metered_tenant_s_default_limit_holds_at_the_worker(
    guarded: Guarded, lookaside: bool
) -> None:
    quota = access_pb2.Quota(tokens_per_min=100_000, default_max_tokens=7)
    client = guarded.client(await guarded.key("metered", quota=quota), lookaside=lookaside)
    answer = await client.complete(model="toy", prompt="Tell me.", ignore_eos=True, timeout_s=20.0)
    assert answer.usage.completion_tokens == 7


async def test_administrators_calls_need_an_administrator_s_key(guarded: Guarded) -> None:
    tenant = await guarded.key("acme")
    for api_key, code, reason in (
        ("", UNAUTHENTICATED, "CREDENTIALS_MISSING"),
        ("ck_0123456789ab_" + "a" * 43, UNAUTHENTICATED, "KEY_INVALID"),
        (tenant, DENIED, "NOT_ALLOWED"),
    ):
        async with AccessAdmin(guarded.cluster.controller_address, api_key=api_key) as caller:
            for call in (
                caller.snapshot(),
                caller.list_keys(),
                caller.delete_model("toy"),
                anext(caller.watch()),
            ):
                with pytest.raises(AdminError) as caught:
                    await call
                assert (caught.value.code, caught.value.reason) == (code, reason)
    made = await guarded.admin.create_key(role=access_pb2.ACCESS_ROLE_ADMIN)
    async with AccessAdmin(guarded.cluster.controller_address, api_key=made.secret) as second:
        assert (await second.snapshot()).models
        await guarded.admin.revoke_key(made.key.key_id)
        with pytest.raises(AdminError) as caught:
            await second.snapshot()
        assert caught.value.reason == "KEY_REVOKED"


@pytest.mark.parametrize(
    ("role", "code", "reason"),
    [
        (None, UNAUTHENTICATED, "CREDENTIALS_MISSING"),
        (access_pb2.ACCESS_ROLE_ROUTER, DENIED, "NOT_ALLOWED"),
        (access_pb2.ACCESS_ROLE_AGENT, None, ""),
    ],
)
async def test_ticket_keys_go_to_agents_alone(
    guarded: Guarded, role: object, code: object, reason: str
) -> None:
    secret = "" if role is None else (await guarded.admin.create_key(role=role)).secret  # type: ignore[arg-type]
    async with open_channel(guarded.cluster.controller_address) as channel:
        call = control_pb2_grpc.ControlServiceStub(channel).ConnectAgent(metadata=bearer_metadata(secret))
        hello = control_pb2.AgentHello(node_id="intruder", host="127.0.0.1", state_id="s")
        await call.write(control_pb2.ConnectAgentRequest(hello=hello))
        if code is None:
            assert (await call.read()).HasField("welcome")
            call.cancel()
            return
        assert await call.code() == code
        error = grpc.aio.AioRpcError(code, await call.initial_metadata(), await call.trailing_metadata())  # type: ignore[arg-type]
        assert reason_of(error) == reason


async def test_a_tenant_with_keys_in_force_stays(guarded: Guarded) -> None:
    secret = await guarded.key("leaving")
    with pytest.raises(AdminError) as caught:
        await guarded.admin.delete_tenant("leaving")
    assert caught.value.reason == "BUSY"
    await guarded.admin.revoke_key(secret.split("_")[1])
    await guarded.admin.delete_tenant("leaving")
    with pytest.raises(AdminError) as caught:
        await guarded.admin.delete_tenant("leaving")
    assert caught.value.reason == "TENANT_NOT_FOUND"


@pytest.mark.parametrize(
    ("tenant", "field"),
    [
        ({"name": "No"}, "name"),
        ({"name": "ok", "models": ["a b"]}, "models"),
        ({"name": "ok", "classes": [0]}, "classes"),
        ({"name": "ok", "quota": access_pb2.Quota(requests_per_s=float("nan"))}, "quota.requests_per_s"),
        ({"name": "ok", "quota": access_pb2.Quota(batch_weight=-1.0)}, "quota.batch_weight"),
        ({"name": "ok", "subjects": ["plain"]}, "subjects"),
        ({"name": "ok", "most_urgent_priority": -2000}, "most_urgent_priority"),
    ],
)
async def test_a_bad_tenant_is_refused_by_field(guarded: Guarded, tenant: dict, field: str) -> None:
    with pytest.raises(AdminError, match=field) as caught:
        await guarded.admin.apply_tenant(access_pb2.Tenant(**tenant))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_command_line_manages_tenants_and_keys(
    guarded: Guarded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = guarded.cluster.controller_address
    file = tmp_path / "tenants.toml"
    file.write_text(
        '[tenants.web]\nmodels = ["toy"]\nclasses = ["interactive"]\nmost_urgent_priority = 0\n'
        "requests_per_s = 50\ntokens_per_min = 100000\nconcurrent = 8\n"
    )

    async def said(command: Awaitable[int]) -> str:
        assert await command == 0
        return capsys.readouterr().out

    assume(Identity(None, guarded.cluster.api_key))
    try:
        assert await said(access.apply_tenants(controller, [file])) == "web: applied\n"
        assert await said(access.apply_tenants(controller, [file])) == "web: unchanged\n"
        assert "web" in await said(access.list_tenants(controller, as_json=False))
        secret = (await said(keys.create_key(controller, "web", "", "site"))).strip()
        key_id = secret.split("_")[1]
        listed = await said(keys.list_keys(controller, as_json=False))
        assert (key_id in listed, "site" in listed, secret[16:] in listed) == (True, True, False)
        await eventually(lambda: guarded.known(secret))
        assert await ask(guarded.client(secret))
        assert await said(keys.revoke_keys(controller, [key_id])) == f"{key_id}: revoked\n"
        assert "revoked" in await said(keys.list_keys(controller, as_json=False))
        assert await said(access.delete_tenants(controller, ["web"])) == "web: deleted\n"
    finally:
        assume(Identity())


async def test_the_command_line_shows_the_key_of_its_environment(guarded: Guarded) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from chiron.cli.main import main; main()", "keys", "list"),
        env={
            **os.environ,
            "CHIRON_API_KEY": guarded.cluster.api_key[:-4] + "AAAA",
            "CHIRON_CONTROLLER": guarded.cluster.controller_address,
        },
        cwd=_ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err == b"error: this API key is not one of this cluster's\n"


async def test_no_secret_is_in_any_log(guarded: Guarded) -> None:
    secret = await guarded.key("acme")
    await ask(guarded.client(secret))
    for log in guarded.cluster.directory.rglob("*.log"):
        text = log.read_text(errors="replace")
        assert guarded.cluster.api_key[16:] not in text
        assert secret[16:] not in text
