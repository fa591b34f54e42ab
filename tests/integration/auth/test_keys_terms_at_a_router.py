"""Keys with limits and defaults of their own at a real router: what workers are told, what is refused; with a
controller and without.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from chiron.auth.api_keys import NewKey
from chiron.internal.v1 import auth_pb2, control_pb2, worker_pb2
from chiron.rpc.bearer import bearer_metadata
from chiron.rpc.errors import metadata_of, reason_of
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from chiron.v1.access_pb2 import KeyDefaults, KeyLimits, KeyTerms, Tenant
from tests.support.fake_router_controller import FakeRouterController
from tests.support.fake_worker import FakeWorker
from tests.support.router_process import RouterProcess, router_process
from tests.support.wait import eventually

INTERACTIVE, BATCH = types_pb2.REQUEST_CLASS_INTERACTIVE, types_pb2.REQUEST_CLASS_BATCH
KEY, PLAIN = NewKey.draw(), NewKey.draw()
DEFAULTS = KeyDefaults(
    request_class=BATCH, priority=7, slo=types_pb2.Slo(deadline_s=60, itl_ms=40), max_tokens=33
)


class World:
    """A router, its controller and one worker; the test makes the keys."""

    def __init__(self, router: RouterProcess, controller: FakeRouterController, worker: FakeWorker) -> None:
        self.router, self.controller, self.worker = router, controller, worker

    async def tell(self, terms: KeyTerms) -> None:
        """Changes the key by a delta; returns once the router goes by it."""
        key = NewKey.draw()
        self.controller.send(keys=[routed(KEY, terms), routed(key, KeyTerms())])
        await eventually(lambda: self.knows(key))

    async def knows(self, key: NewKey) -> bool:
        try:
            await self.route(key=key)
        except grpc.aio.AioRpcError as error:
            return reason_of(error) != "KEY_INVALID"
        return True

    async def route(self, key: NewKey = KEY, **fields: object) -> worker_pb2.Ticket:
        request = pb.RouteRequest(model="m", **fields)  # type: ignore[arg-type]
        call = self.router.stub.Route(
            request, timeout=20, wait_for_ready=True, metadata=bearer_metadata(key.text)
        )
        return ticket_of((await call).ticket)

    async def refused(self, key: NewKey = KEY, **fields: object) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.route(key, **fields)
        return caught.value


def ticket_of(wire: bytes) -> worker_pb2.Ticket:
    return worker_pb2.Ticket.FromString(auth_pb2.SignedTicket.FromString(wire).ticket)


def routed(key: NewKey, terms: KeyTerms) -> control_pb2.RoutedKey:
    return control_pb2.RoutedKey(key_id=key.key_id, digest=key.digest, tenant="acme", terms=terms)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    worker = await FakeWorker("a", batch_size=64).start()
    controller = await FakeRouterController().start()
    try:
        defaults = types_pb2.Slo(ttft_ms=900, itl_ms=90)
        controller.add("m", [worker])
        controller.table.models[0].slo_defaults.interactive.CopyFrom(defaults)
        controller.table.models[0].slo_defaults.batch.CopyFrom(defaults)
        controller.table.tenants.append(Tenant(name="acme", models=["*"]))
        controller.table.keys.extend([routed(KEY, KeyTerms(defaults=DEFAULTS)), routed(PLAIN, KeyTerms())])
        async with router_process(
            tmp_path, controller.address, **{"auth.require": "true", "ticket_ttl_s": 60}
        ) as router:
            await eventually(lambda: worker.subscriptions)
            yield World(router, controller, worker)
    finally:
        await worker.stop()
        await controller.stop()


async def test_a_ticket_has_the_keys_defaults_where_the_request_says_nothing(world: World) -> None:
    ticket = await world.route()
    assert (ticket.request_class, ticket.priority, ticket.max_tokens) == (BATCH, 7, 33)
    assert ticket.slo == types_pb2.Slo(ttft_ms=900, itl_ms=40, deadline_s=60)
    own = await world.route(request_class=INTERACTIVE, priority=0, max_tokens=5)
    assert (own.request_class, own.priority, own.max_tokens) == (INTERACTIVE, 0, 5)
    assert own.slo == types_pb2.Slo(ttft_ms=900, itl_ms=90), "the model's: the key's are of its own class"
    plain = await world.route(PLAIN)
    assert (plain.request_class, plain.priority, plain.max_tokens) == (INTERACTIVE, 0, 0)


async def test_what_is_proxied_has_them_too(world: World) -> None:
    request = pb.GenerateRequest(model="m", prompt="Hi")
    call = world.router.stub.Generate(
        request, timeout=20, wait_for_ready=True, metadata=bearer_metadata(KEY.text)
    )
    async with asyncio.timeout(20):
        at_worker = await world.worker.calls.get()
    ticket = ticket_of(at_worker.request.ticket)
    assert (ticket.request_class, ticket.priority, ticket.max_tokens) == (BATCH, 7, 33)
    assert ticket.slo == types_pb2.Slo(ttft_ms=900, itl_ms=40, deadline_s=60)
    at_worker.finish()
    assert await call.read() == grpc.aio.EOF


async def test_a_changed_limit_counts_and_holds_without_a_controller(world: World) -> None:
    await world.tell(KeyTerms(limits=KeyLimits(requests_per_s=0.001)))
    await world.route()
    error = await world.refused()
    told = {"limit": "requests_per_s", "limit_of": "key", "key_id": KEY.key_id}
    assert (reason_of(error), metadata_of(error)) == ("QUOTA_EXCEEDED", told)
    # Other changes of the table leave what it has used.
    await world.tell(KeyTerms(limits=KeyLimits(requests_per_s=0.001, models=["m"])))
    assert reason_of(await world.refused()) == "QUOTA_EXCEEDED"

    async def near() -> bool:
        report = await world.controller.reports.get()
        return [(use.key_id, use.use.limit) for use in report.near_limits] == [(KEY.key_id, "requests_per_s")]

    await eventually(near)
    await world.controller.stop()
    assert reason_of(await world.refused()) == "QUOTA_EXCEEDED"
    assert (await world.route(PLAIN)).instance_id == "a"


async def test_a_limit_that_a_key_gets_late_counts_what_runs_already(world: World) -> None:
    await world.tell(KeyTerms())
    request = pb.GenerateRequest(model="m", prompt="Hi")
    call = world.router.stub.Generate(
        request, timeout=20, wait_for_ready=True, metadata=bearer_metadata(KEY.text)
    )
    async with asyncio.timeout(20):
        at_worker = await world.worker.calls.get()
    await world.tell(KeyTerms(limits=KeyLimits(concurrent=1)))
    error = await world.refused()
    assert (reason_of(error), metadata_of(error)["limit"]) == ("QUOTA_EXCEEDED", "concurrent")
    at_worker.finish()
    assert await call.read() == grpc.aio.EOF

    async def let_in() -> bool:
        try:
            await world.route()
        except grpc.aio.AioRpcError as refused:
            if reason_of(refused) != "QUOTA_EXCEEDED":
                raise
            return False
        return True

    await eventually(let_in)


async def test_an_expired_key_is_refused_whatever_the_controller_does(world: World) -> None:
    terms = KeyTerms()
    terms.expires.FromSeconds(1_000)
    await world.tell(terms)
    await world.controller.stop()
    error = await world.refused()
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_EXPIRED")
