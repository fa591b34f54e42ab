"""A client that a router turns away waits as long as it is told, and holds nothing against the router."""

from __future__ import annotations

import time

import pytest

from chiron.client import Client, StreamInterrupted, TurnedAway
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason
from tests.support.fake_inference import FakeDoor, FakeRouter, answer, break_off, refuse, serving

PAUSE_S = 0.3
AWAY = ServerError(Reason.TOO_MANY_ABANDONED, "you cancel too much", retry_after_s=PAUSE_S)


@pytest.fixture
async def worker():
    return FakeDoor("w-1")


@pytest.fixture
async def spare():
    return FakeDoor("w-2", answer("Once", " more"))


@pytest.fixture
async def routers(worker, spare):
    first, second = FakeRouter(worker, spare), FakeRouter(worker, spare)
    async with serving(worker, spare, first, second):
        yield first, second


@pytest.mark.parametrize("lookaside", [True, False])
async def test_it_waits_and_asks_the_same_router_again(routers, lookaside):
    first, second = routers
    away = refuse(Reason.TOO_MANY_ABANDONED, "you cancel too much", retry_after_s=PAUSE_S)
    first.script = [away, answer("at", " last")]
    first.refusals = [AWAY]
    async with Client([first.address, second.address], lookaside=lookaside) as client:
        begun = time.monotonic()
        whole = await client.complete(model="toy", prompt="x")
        assert time.monotonic() - begun >= PAUSE_S
        assert (whole.attempts, client.stats.retries) == (2, 1)
        # The next request goes there at once.
        await client.complete(model="toy", prompt="x")
        assert client.stats.retries == 1
    assert not second.routed
    assert not second.generated


async def test_the_error_is_typed_where_waiting_does_not_help(routers):
    first, _ = routers
    first.refusal = AWAY
    async with Client(first.address, max_attempts=2) as client:
        with pytest.raises(TurnedAway, match="you cancel too much") as caught:
            await client.complete(model="toy", prompt="x")
    assert (caught.value.reason, caught.value.retry_after_s) == ("TOO_MANY_ABANDONED", PAUSE_S)
    assert len(first.routed) == 2


async def test_it_does_not_wait_beyond_its_own_time(routers):
    first, _ = routers
    first.refusal = AWAY
    async with Client(first.address) as client:
        with pytest.raises(TurnedAway):
            await client.complete(model="toy", prompt="x", timeout_s=PAUSE_S)
    assert len(first.routed) == 1


async def test_a_broken_stream_waits_too_before_it_goes_on(routers, worker):
    first, _ = routers
    worker.script = [break_off("Once")]
    first.refusals = [None, AWAY]
    async with Client(first.address) as client:
        chunks = [chunk async for chunk in client.generate(model="toy", prompt="x")]
        assert client.stats.resumed == 1
    assert "".join(chunk.text for chunk in chunks) == "Once more"


async def test_a_broken_stream_that_may_not_go_on_tells_what_it_has(routers, worker):
    first, _ = routers
    worker.script = [break_off("Once")]
    first.refusals = [None, AWAY, AWAY, AWAY, AWAY, AWAY]
    async with Client(first.address, max_attempts=2) as client:
        with pytest.raises(StreamInterrupted) as caught:
            [chunk async for chunk in client.generate(model="toy", prompt="x")]
    assert caught.value.delivered[0].text == "Once"
    assert caught.value.__cause__.reason == "TOO_MANY_ABANDONED"
