"""Keys with terms of their own, and tenants that share, at the HTTP door as at the gRPC one."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import grpc
import openai
import pytest

from chiron.auth.api_keys import NewKey
from chiron.auth.settings import AuthSettings
from chiron.internal.v1 import auth_pb2, control_pb2, worker_pb2
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from chiron.v1.access_pb2 import KeyDefaults, KeyLimits, KeyTerms, Tenant
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeCall
from tests.support.http_door import ANY, openai_at

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
ASKED = AuthSettings(require=True)


def enrol(controller: FakeRouterController, tenant: str, **terms: object) -> str:
    """A key with these terms."""
    key = NewKey.draw()
    if tenant not in (one.name for one in controller.table.tenants):
        controller.table.tenants.append(Tenant(name=tenant, models=["*"]))
    controller.table.keys.append(
        control_pb2.RoutedKey(
            key_id=key.key_id,
            digest=key.digest,
            tenant=tenant,
            terms=KeyTerms(**terms),  # type: ignore[arg-type]
        )
    )
    return key.text


def expired() -> KeyTerms:
    terms = KeyTerms()
    terms.expires.FromSeconds(1_000)
    return terms


def ticket_of(call: FakeCall) -> worker_pb2.Ticket:
    return worker_pb2.Ticket.FromString(auth_pb2.SignedTicket.FromString(call.request.ticket).ticket)


def end(call: FakeCall) -> None:
    """Answers with one token."""
    usage = pb.Usage(prompt_tokens=1, completion_tokens=1)
    delta = pb.OutputDelta(token_ids=[1], text="ok", finish_reason=pb.FINISH_REASON_STOP, usage=usage)
    call.send(pb.GenerateResponse(deltas=[delta]))
    call.finish()


async def test_an_openai_client_is_told_its_keys_limit_and_when_to_come_again(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    secret = enrol(controller, "acme", limits=KeyLimits(requests_per_s=0.01))
    other = enrol(controller, "acme")
    router = await start_router(worker, http=ANY, auth=ASKED)
    async with openai_at(router.router.http_url, secret) as client:
        asking = asyncio.create_task(client.completions.create(model="m", prompt="Hi"))
        end(await worker.calls.get())
        assert (await asking).choices[0].text == "ok"
        with pytest.raises(openai.RateLimitError) as raised:
            await client.completions.create(model="m", prompt="Hi")
    error = raised.value
    assert error.code == "quota_exceeded"
    assert f"the quota of API key {secret[3:15]}, 0.01 requests a second" in error.message
    assert 1 < int(error.response.headers["retry-after"]) <= 100
    # What it has used at one door counts at the other one, and no other key of its tenant's is held up.
    call = router.stub.Route(pb.RouteRequest(model="m"), metadata=bearer_metadata(secret))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert reason_of(refused.value) == "QUOTA_EXCEEDED"
    assert (
        await router.stub.Route(pb.RouteRequest(model="m"), metadata=bearer_metadata(other))
    ).instance_id == "a"


async def test_an_expired_key_is_none_to_an_openai_client(start_worker, start_router, controller) -> None:
    key = NewKey.draw()
    controller.table.tenants.append(Tenant(name="acme", models=["*"]))
    controller.table.keys.append(
        control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant="acme", terms=expired())
    )
    router = await start_router(await start_worker("a"), http=ANY, auth=ASKED)
    async with openai_at(router.router.http_url, key.text) as client:
        with pytest.raises(openai.AuthenticationError, match="expired at 1970-01-01") as raised:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert raised.value.code == "api_key_expired"


async def test_models_that_a_key_may_not_use_are_not_there_for_it(
    start_worker, start_router, controller
) -> None:
    worker = await start_worker("a")
    controller.add("m", [worker])
    controller.add("other")
    secret = enrol(controller, "acme", limits=KeyLimits(models=["m"]))
    router = await start_router(worker, http=ANY, auth=ASKED)
    async with openai_at(router.router.http_url, secret) as client:
        assert [model.id for model in (await client.models.list()).data] == ["m"]
        with pytest.raises(openai.PermissionDeniedError, match=r"API key .* may not use model 'other'"):
            await client.completions.create(model="other", prompt="Hi")


@pytest.mark.parametrize(
    ("asked", "kind", "deadline_s", "priority"),
    [
        ({}, BATCH, 60, 7),
        ({"service_tier": "auto"}, BATCH, 60, 7),
        ({"service_tier": "default"}, INTERACTIVE, 0, 7),
        ({"extra_headers": {"x-chiron-class": "interactive"}}, INTERACTIVE, 0, 7),
        ({"extra_headers": {"x-chiron-deadline-s": "9"}}, BATCH, 9, 7),
        ({"extra_body": {"slo": {"deadline_s": 5}, "priority": 0}}, BATCH, 5, 0),
    ],
    ids=["nothing", "auto", "tier", "header", "deadline", "body"],
)
async def test_the_keys_defaults_are_the_weakest_word(
    start_worker, start_router, controller, asked: dict, kind: int, deadline_s: float, priority: int
) -> None:
    worker = await start_worker("a")
    defaults = KeyDefaults(request_class=BATCH, priority=7, slo=types_pb2.Slo(deadline_s=60))
    secret = enrol(controller, "acme", defaults=defaults)
    router = await start_router(worker, http=ANY, auth=ASKED)
    async with openai_at(router.router.http_url, secret) as client:
        message = {"role": "user", "content": "Hi"}
        asking = asyncio.create_task(client.chat.completions.create(model="m", messages=[message], **asked))
        call = await worker.calls.get()
        ticket = ticket_of(call)
        assert (ticket.request_class, ticket.slo.deadline_s, ticket.priority) == (kind, deadline_s, priority)
        end(call)
        await asking


async def test_without_authentication_nobodys_defaults_count(start_worker, start_router, controller) -> None:
    worker = await start_worker("a")
    secret = enrol(
        controller, "acme", defaults=KeyDefaults(request_class=BATCH), limits=KeyLimits(models=["x"])
    )
    router = await start_router(worker, http=ANY)
    async with openai_at(router.router.http_url, secret) as client:
        asking = asyncio.create_task(client.completions.create(model="m", prompt="Hi"))
        call = await worker.calls.get()
        assert ticket_of(call).request_class == INTERACTIVE
        end(call)
        await asking


async def test_one_tenants_flood_at_either_door_leaves_others_their_turn_at_both(
    start_worker, start_router, controller
) -> None:
    """One slot; forty requests of one tenant wait, by two keys at two doors, then one of another at each."""
    worker = await start_worker("a", batch_size=1)
    flood = [enrol(controller, "flood"), enrol(controller, "flood")]
    small = enrol(controller, "small")
    router = await start_router(worker, http=ANY, auth=ASKED, worker_queue=0)
    async with AsyncExitStack() as stack:
        clients = {
            key: await stack.enter_async_context(openai_at(router.router.http_url, key))
            for key in (*flood, small)
        }
        tasks: list[asyncio.Task[object]] = []

        def over_http(key: str) -> None:
            asking = clients[key].completions.create(model="m", prompt="Hi", max_tokens=9)
            tasks.append(asyncio.create_task(asking))

        async def read(key: str) -> None:
            request = pb.GenerateRequest(model="m", prompt="Hi", sampling=pb.SamplingParams(max_tokens=9))
            call = router.stub.Generate(request, metadata=bearer_metadata(key))
            async for _ in call:
                pass

        over_http(flood[0])
        served = [await worker.calls.get()]
        for number in range(20):
            over_http(flood[number % 2])
            tasks.append(asyncio.create_task(read(flood[number % 2])))
        await router.queued(40)
        over_http(small)
        tasks.append(asyncio.create_task(read(small)))
        await router.queued(42)
        while len(served) < 43:
            end(served[-1])
            async with asyncio.timeout(20):
                served.append(await worker.calls.get())
        end(served[-1])
        await asyncio.gather(*tasks)
    order = [ticket_of(call).tenant for call in served[1:]]
    assert [place for place, tenant in enumerate(order) if tenant == "small"][-1] <= 3
