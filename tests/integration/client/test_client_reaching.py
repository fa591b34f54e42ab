"""Workers and routers that cannot be reached: the way round, and what is remembered."""

from __future__ import annotations

import asyncio
import time

import pytest

from chiron.client import Client, DeadlineExceeded, RetryElsewhere, Unavailable
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason
from tests.support.fake_inference import (
    Blackhole,
    FakeDoor,
    FakeRouter,
    Relay,
    answer,
    break_off,
    closed_port,
    refuse,
    serving,
)

QUICK = 0.2
"""Seconds to wait for a connection: enough on loopback, short for the tests."""


@pytest.fixture
async def worker():
    return FakeDoor("w-1")


@pytest.fixture
async def router(worker):
    router = FakeRouter(worker, script=(answer("by", " proxy"),))
    async with serving(worker, router):
        yield router


async def test_a_worker_that_does_not_answer_is_bypassed_through_the_router(router, worker):
    with Blackhole() as silent:
        worker.address = silent.address
        async with Client(router.address) as client:
            whole = await client.complete(model="toy", prompt="x")
            assert (client.stats.fallbacks, client.stats.retried) == (1, 0)
    assert (whole.text, whole.attempts) == ("by proxy", 1)
    assert router.generated[0].elapsed_ms >= 1000
    assert router.generated[0].ticket == b""


async def test_the_bypass_is_remembered_so_that_later_requests_do_not_wait(router, worker):
    with Blackhole() as silent:
        worker.address = silent.address
        async with Client(router.address, connect_timeout_s=QUICK) as client:
            for _ in range(3):
                await client.complete(model="toy", prompt="x")
            assert client.stats.fallbacks == 3
        assert silent.connections() == 1


async def test_a_request_that_runs_out_of_time_puts_no_blame_on_the_worker(router, worker):
    there = worker.address
    with Blackhole() as silent:
        worker.address = silent.address
        async with Client(router.address, connect_timeout_s=30) as client:
            with pytest.raises(DeadlineExceeded):
                await client.complete(model="toy", prompt="x", timeout_s=QUICK)
            assert silent.connections() == 1
            worker.address = there
            assert (await client.complete(model="toy", prompt="x")).timing.instance_id == "w-1"
            # Had it been blamed, its host would be avoided now.
            assert client.stats.fallbacks == 0


async def test_the_bypass_is_forgotten_in_time(router, worker):
    there = worker.address
    with Blackhole() as silent:
        worker.address = silent.address
        async with Client(router.address, connect_timeout_s=QUICK, fallback_memory_s=0.0) as client:
            await client.complete(model="toy", prompt="x")
            worker.address = there
            whole = await client.complete(model="toy", prompt="x")
            assert client.stats.fallbacks == 1
    assert whole.timing.instance_id == "w-1"


async def test_other_workers_stay_direct_when_one_does_not_answer(router, worker):
    good = FakeDoor("w-2")
    async with serving(good), Client(router.address, connect_timeout_s=QUICK) as client:
        router.workers = [good]
        await client.complete(model="toy", prompt="x")
        with Blackhole() as silent:
            worker.address = silent.address
            router.workers = [worker]
            assert (await client.complete(model="toy", prompt="x")).text == "by proxy"
            router.workers = [good]
            whole = await client.complete(model="toy", prompt="x")
    assert whole.timing.instance_id == "w-2"


async def test_when_several_workers_in_a_row_do_not_answer_the_router_is_not_asked_for_more(router, worker):
    other = FakeDoor("w-2")
    with Blackhole() as silent, Blackhole() as too:
        worker.address = silent.address
        # One address would make them workers of one host; two names keep them apart.
        other.address = too.address.replace("127.0.0.1", "localhost")
        async with Client(router.address, connect_timeout_s=QUICK) as client:
            await client.complete(model="toy", prompt="x")
            router.workers = [other]
            await client.complete(model="toy", prompt="x")
            asked = len(router.routed)
            await client.complete(model="toy", prompt="x")
            assert len(router.routed) == asked == 2
            assert client.stats.fallbacks == 3


async def test_when_every_worker_refuses_connections_the_router_takes_over(router, worker):
    other = FakeDoor("w-2")
    worker.address, other.address = closed_port(), closed_port()
    router.workers = [worker, other]
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x")
        assert (client.stats.fallbacks, client.stats.retried) == (1, 1)
    assert (whole.text, whole.attempts) == ("by proxy", 2)


async def test_a_single_attempt_still_falls_back_when_the_worker_refuses_connections(router, worker):
    worker.address = closed_port()
    async with Client(router.address, max_attempts=1) as client:
        assert (await client.complete(model="toy", prompt="x")).text == "by proxy"


@pytest.mark.parametrize("lookaside", [True, False])
async def test_a_router_that_is_not_there_makes_room_for_the_next(router, lookaside):
    async with Client([closed_port(), router.address], lookaside=lookaside) as client:
        whole = await client.complete(model="toy", prompt="x")
    assert whole.attempts == 1


async def test_a_router_that_does_not_answer_is_waited_for_once(router):
    with Blackhole() as silent:
        async with Client([silent.address, router.address], connect_timeout_s=QUICK) as client:
            await client.complete(model="toy", prompt="x")
            await client.complete(model="toy", prompt="x")
        assert silent.connections() == 1
    assert len(router.routed) == 2


async def test_routers_are_used_in_the_order_given(router, worker):
    spare = FakeRouter(worker)
    async with serving(spare), Client([router.address, spare.address]) as client:
        for _ in range(3):
            await client.complete(model="toy", prompt="x")
    assert (len(router.routed), len(spare.routed)) == (3, 0)


async def test_a_router_lost_during_a_request_is_replaced_by_the_next(router, worker):
    dying = FakeRouter(worker)
    async with serving(dying), Relay(dying).running() as relay:

        async def cut(door, request, context):
            relay.cut()
            async for response in break_off("x")(door, request, context):
                yield response

        dying.script = [cut]
        async with Client([relay.address, router.address], lookaside=False) as client:
            whole = await client.complete(model="toy", prompt="x")
            await client.complete(model="toy", prompt="x")
    assert (whole.text, whole.attempts) == ("by proxy", 2)
    assert (len(dying.generated), len(router.generated)) == (1, 2)


@pytest.mark.parametrize("lookaside", [True, False])
async def test_a_router_that_shuts_down_is_replaced_by_the_next_and_left_alone(router, worker, lookaside):
    going = ServerError(Reason.RETRY_ELSEWHERE, "this router is shutting down")
    leaving = FakeRouter(worker, script=(refuse(going.reason, going.message),))
    leaving.refusal = going
    async with serving(leaving), Client([leaving.address, router.address], lookaside=lookaside) as client:
        attempts = [(await client.complete(model="toy", prompt="x")).attempts for _ in range(3)]
        assert client.stats.failed == 0
    assert attempts == [2, 1, 1]
    assert len(leaving.routed + leaving.generated) == 1


async def test_routers_that_all_turn_a_request_away_are_asked_again_after_a_pause(router, worker):
    going = ServerError(Reason.RETRY_ELSEWHERE, "this router is shutting down")
    spare = FakeRouter(worker)
    router.refusal = spare.refusal = going
    async with serving(spare), Client([router.address, spare.address], max_attempts=5) as client:
        begun = time.monotonic()
        with pytest.raises(RetryElsewhere, match="shutting down"):
            await client.complete(model="toy", prompt="x")
        # 0.1 s after the first round, twice that after the second.
        assert time.monotonic() - begun >= 0.3
    assert (len(router.routed), len(spare.routed)) == (3, 2)


async def test_a_pause_is_as_long_as_the_router_asks(router):
    router.refusal = ServerError(Reason.RETRY_ELSEWHERE, "no table yet", retry_after_s=0.5)
    async with Client(router.address, max_attempts=2) as client:
        begun = time.monotonic()
        with pytest.raises(RetryElsewhere, match="no table yet"):
            await client.complete(model="toy", prompt="x")
        assert time.monotonic() - begun >= 0.5
    assert len(router.routed) == 2


async def test_a_pause_that_is_longer_than_the_time_left_is_not_begun(router):
    router.refusal = ServerError(Reason.RETRY_ELSEWHERE, "no table yet", retry_after_s=3600)
    async with Client(router.address, timeout_s=30) as client:
        with pytest.raises(RetryElsewhere, match="no table yet"):
            await client.complete(model="toy", prompt="x")
    assert len(router.routed) == 1


async def test_without_any_router_the_error_says_what_is_wrong_with_each():
    refused = closed_port()
    with Blackhole() as silent:
        async with Client([refused, silent.address], connect_timeout_s=QUICK) as client:
            with pytest.raises(Unavailable) as caught:
                await client.complete(model="toy", prompt="x")
            assert client.stats.retries == 0
    assert caught.value.reason == "ROUTER_UNREACHABLE"
    assert f"{refused}: " in caught.value.message
    assert "Connection refused" in caught.value.message
    assert f"{silent.address}: no connection within 0.2 s" in caught.value.message


async def test_a_router_that_comes_back_is_found_at_once(worker):
    router = FakeRouter(worker)
    address = closed_port()
    async with Client(address) as client:
        with pytest.raises(Unavailable):
            await client.complete(model="toy", prompt="x")
        async with serving(worker, router, ports={router: int(address.rsplit(":")[1])}):
            assert (await client.complete(model="toy", prompt="x")).attempts == 1


async def test_a_router_that_has_answered_before_is_waited_for(worker):
    router = FakeRouter(worker)
    address = closed_port()
    ports = {router: int(address.rsplit(":")[1])}
    async with serving(worker), Client(address) as client:
        async with serving(router, ports=ports):
            await client.complete(model="toy", prompt="x")
        waiting = asyncio.create_task(client.complete(model="toy", prompt="x"))
        done, _ = await asyncio.wait({waiting}, timeout=2 * QUICK)
        assert not done
        async with serving(router, ports=ports):
            assert (await waiting).attempts == 1


async def test_a_router_is_not_waited_for_longer_than_allowed(worker):
    router = FakeRouter(worker)
    async with serving(worker), serving(router):
        patient = Client(router.address)
        hasty = Client(router.address, router_wait_s=QUICK)
        impatient = Client(router.address, router_wait_s=0.0)
        for client in (patient, hasty, impatient):
            await client.complete(model="toy", prompt="x")
        refused = router.address
    for client, timeout_s in ((patient, QUICK), (hasty, None), (impatient, None)):
        async with client:
            with pytest.raises(Unavailable, match=f"{refused}: .*Connection refused") as caught:
                await client.complete(model="toy", prompt="x", timeout_s=timeout_s)
            assert caught.value.reason == "ROUTER_UNREACHABLE"
            assert client.stats.retries == 0


async def test_connections_to_workers_are_bounded(router, worker):
    workers = [FakeDoor(f"w-{index}") for index in range(4)]
    async with serving(*workers), Client(router.address, max_worker_channels=2) as client:
        for each in workers:
            router.workers = [each]
            assert (await client.complete(model="toy", prompt="x")).timing.instance_id == each.name
        assert client.open_worker_channels == 2


async def test_a_router_that_tells_nothing_of_the_wait_is_asked_as_ever(router, worker):
    told = []
    async with Client(router.address) as client:
        whole = await client.complete(model="toy", prompt="x", on_progress=told.append)
        assert (whole.attempts, client.stats.fallbacks) == (1, 0)
    assert (len(router.routed), told) == (1, [])
