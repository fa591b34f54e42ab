"""Servers that never answer: what a request without a time limit of its own comes to."""

from __future__ import annotations

import asyncio

import pytest

from chiron.client import Client, DeadlineExceeded
from chiron.rpc.servers import Server
from chiron.v1 import batch_pb2_grpc
from tests.support.fake_inference import FakeDoor, FakeRouter, serving, stall
from tests.support.wait import eventually

TOLD = r"nothing was heard for silence_s=0\.1$"


async def test_a_route_that_is_never_answered_ends() -> None:
    router = FakeRouter(FakeDoor("w-1"))
    router.hold.clear()
    async with serving(router), Client(router.address, silence_s=0.1) as client:
        with pytest.raises(DeadlineExceeded, match=TOLD):
            await client.complete(model="toy", prompt="x")
        assert client.stats.retries == 0


@pytest.mark.parametrize("lookaside", [True, False], ids=["lookaside", "proxied"])
async def test_a_stream_of_which_nothing_more_comes_ends_after_what_came(lookaside: bool) -> None:
    worker = FakeDoor("w-1", stall("Once"))
    router = FakeRouter(worker, script=(stall("Once"),))
    async with serving(worker, router), Client(router.address, lookaside=lookaside, silence_s=0.1) as client:
        stream = client.generate(model="toy", prompt="x")
        assert (await anext(stream)).text == "Once"
        with pytest.raises(DeadlineExceeded, match=TOLD):
            await anext(stream)
        # The slot is free: whoever served it hears that nobody listens.
        await eventually(lambda: worker.running == router.running == 0)


async def test_batch_requests_and_clients_that_say_so_wait_on() -> None:
    worker = FakeDoor("w-1")
    router = FakeRouter(worker)
    router.hold.clear()
    async with (
        serving(worker, router),
        Client(router.address, silence_s=0.1) as client,
        Client(router.address, silence_s=None) as patient,
    ):
        waiting = [
            asyncio.ensure_future(client.complete(model="toy", prompt="x", request_class="batch")),
            asyncio.ensure_future(patient.complete(model="toy", prompt="x")),
        ]
        await eventually(lambda: len(router.routed) == 2)
        with pytest.raises(DeadlineExceeded, match=TOLD):
            await client.complete(model="toy", prompt="x")
        assert not any(one.done() for one in waiting)
        router.hold.set()
        assert [(await one).text for one in waiting] == ["Once upon a time"] * 2


class NeverAnswers(batch_pb2_grpc.BatchServiceServicer):
    """A router whose batch service takes calls, and that is all."""

    async def GetBatch(self, request: object, context: object) -> None:
        await asyncio.Event().wait()


async def test_a_call_about_a_batch_that_is_never_answered_ends() -> None:
    server = Server([])
    batch_pb2_grpc.add_BatchServiceServicer_to_server(NeverAnswers(), server.grpc)
    address = f"127.0.0.1:{server.bind('127.0.0.1:0')}"
    await server.start()
    try:
        async with Client(address, silence_s=0.1) as client:
            with pytest.raises(DeadlineExceeded, match=TOLD):
                await client.batch.get("b")
            with pytest.raises(DeadlineExceeded):
                await client.batch.get("b", timeout_s=0.1)
    finally:
        await server.grpc.stop(None)
