"""The controller makes, keeps, rotates and hands out the keys of tickets."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from chiron.auth.keys import KeyRing
from chiron.internal.v1 import control_pb2_grpc
from chiron.rpc.servers import Server
from chiron.store import MemoryStore, Store, TicketKeysRecord, Transaction
from services.global_controller.config import ControllerConfig
from services.global_controller.control_servicer import ControlServicer
from services.global_controller.controller import Controller
from services.global_controller.seat import Seat
from services.global_controller.store_health import StoreHealth
from tests.support.fake_agent import FakeAgent
from tests.support.fake_router import FakeRouter
from tests.support.wait import eventually

_DAY_S = 86_400.0


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def controller(
    stack: AsyncExitStack, store: Store, *, period_s: float = _DAY_S
) -> tuple[Controller, str]:
    config = ControllerConfig(report_interval_ms=100, liveness_timeout_s=1.0, ticket_key_period_s=period_s)
    one = Controller(config, store)
    seat = Seat("127.0.0.1:0", StoreHealth("memory", time.monotonic))
    seat.take(one)
    server = Server(["chiron.internal.v1.ControlService"])
    control_pb2_grpc.add_ControlServiceServicer_to_server(ControlServicer(seat), server.grpc)
    address = f"127.0.0.1:{server.bind('127.0.0.1:0')}"
    await one.start()
    running = asyncio.create_task(one.run())
    await server.start()

    async def stop() -> None:
        one.close()
        await server.stop(0.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    stack.push_async_callback(stop)
    return one, address


async def test_agents_and_routers_get_the_same_keys_before_anything_to_use_them_on(
    stack: AsyncExitStack,
) -> None:
    _, address = await controller(stack, MemoryStore())
    router = await stack.enter_async_context(FakeRouter(address, reading=False))
    await router.read()
    assert (len(router.keys), router.snapshots) == (1, 1), "the keys come with the first table, not after it"
    agent = await stack.enter_async_context(FakeAgent(address, "a"))
    await agent.until(lambda one: one.keys)
    assert agent.keys == router.keys
    assert KeyRing.from_message(agent.keys[0])


async def test_a_rotation_reaches_everybody_and_the_old_key_stays_accepted(stack: AsyncExitStack) -> None:
    _, address = await controller(stack, MemoryStore(), period_s=0.3)
    router = await stack.enter_async_context(FakeRouter(address))
    agent = await stack.enter_async_context(FakeAgent(address, "a"))
    await eventually(lambda: len(agent.keys) >= 3 and len(router.keys) >= 3)
    rings = [KeyRing.from_message(one) for one in router.keys[:3]]
    for before, after in itertools.pairwise(rings):
        assert after.signing_key_id != before.signing_key_id
        assert before.signing_key_id in after.secrets
        assert after.signing_key_id in before.secrets
    assert rings[0].signing_key_id not in rings[2].secrets


async def test_the_next_controller_goes_on_with_the_stored_keys(stack: AsyncExitStack) -> None:
    store = MemoryStore()
    async with AsyncExitStack() as reign:
        _, address = await controller(reign, store)
        first = await reign.enter_async_context(FakeAgent(address, "a"))
        await first.until(lambda one: one.keys)
    _, address = await controller(stack, store)
    strange = KeyRing.draw().to_message()
    second = await stack.enter_async_context(FakeAgent(address, "a", held=strange))
    await second.until(lambda one: one.keys)
    assert second.keys == first.keys, "neither new keys nor those that somebody offers"


async def test_a_period_goes_on_over_a_change_of_controllers(stack: AsyncExitStack) -> None:
    store = MemoryStore()
    ring = KeyRing.draw()
    record = TicketKeysRecord(ring.to_bytes(), rotated_unix_ms=1)
    await store.commit(Transaction(term=await store.acquire_term(), puts=(record,)))
    _, address = await controller(stack, store, period_s=_DAY_S)
    router = await stack.enter_async_context(FakeRouter(address))
    await eventually(lambda: router.keys and router.keys[-1].signing_key_id == ring.rotated().signing_key_id)


@pytest.mark.parametrize("first", ["agent", "router"])
async def test_a_controller_that_kept_nothing_goes_on_with_the_keys_of_those_who_serve(
    stack: AsyncExitStack, first: str
) -> None:
    held = KeyRing.draw().rotated()
    _, address = await controller(stack, MemoryStore())
    joins: dict[str, Callable[[], FakeAgent | FakeRouter]] = {
        "agent": lambda: FakeAgent(address, "a", held=held.to_message()),
        "router": lambda: FakeRouter(address, held=held.to_message()),
    }
    one = await stack.enter_async_context(joins[first]())
    await eventually(lambda: one.keys)
    assert KeyRing.from_message(one.keys[0]) == held


async def test_keys_offered_late_to_a_controller_that_made_its_own_are_accepted_too(
    stack: AsyncExitStack,
) -> None:
    _, address = await controller(stack, MemoryStore())
    newcomer = await stack.enter_async_context(FakeAgent(address, "new"))
    await newcomer.until(lambda one: one.keys)
    held = KeyRing.draw()
    veteran = await stack.enter_async_context(FakeRouter(address, held=held.to_message()))
    await eventually(lambda: veteran.keys)
    await newcomer.until(lambda one: len(one.keys) == 2)
    ring = KeyRing.from_message(newcomer.keys[-1])
    assert held.secrets.keys() < ring.secrets.keys()
    assert ring.signing_key_id == newcomer.keys[0].signing_key_id


async def test_keys_are_no_part_of_what_operators_see(
    stack: AsyncExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    one, address = await controller(stack, MemoryStore(), period_s=0.2)
    router = await stack.enter_async_context(FakeRouter(address))
    await eventually(lambda: len(router.keys) > 2)
    shown = one.show().SerializeToString() + repr(one.snapshot).encode() + caplog.text.encode()
    for message in router.keys:
        for key in message.keys:
            assert key.secret not in shown
            assert repr(key.secret)[2:-1].encode() not in shown
