"""Errors arrive typed, with the fields that the server sent in google.rpc details."""

from __future__ import annotations

import asyncio

import pytest

from chiron.client import (
    AlreadyExists,
    Client,
    ClientClosed,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    Unavailable,
    Unimplemented,
    Violation,
)
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason
from chiron.rpc.servers import Server
from tests.support.fake_inference import Blackhole, FakeDoor, FakeRouter, refuse, serving, stall
from tests.support.wait import eventually


@pytest.fixture
async def worker():
    return FakeDoor("w-1")


@pytest.fixture
async def router(worker):
    router = FakeRouter(worker)
    async with serving(worker, router):
        yield router


async def test_an_unknown_model_is_a_model_not_found_that_names_those_there_are(router):
    router.refusal = ServerError(
        Reason.MODEL_NOT_FOUND, "model 'nope' is unknown; there are: toy", metadata={"models": "toy"}
    )
    async with Client(router.address) as client:
        with pytest.raises(ModelNotFound) as caught:
            await client.complete(model="nope", prompt="x")
    assert caught.value.reason == "MODEL_NOT_FOUND"
    assert caught.value.message == "model 'nope' is unknown; there are: toy"
    assert caught.value.metadata == {"models": "toy"}


async def test_bad_fields_are_named_one_by_one(router, worker):
    faults = [("sampling.top_p", "too big"), ("slo.ttft_ms", "negative")]
    worker.script = [refuse(Reason.INVALID_ARGUMENT, violations=faults)]
    async with Client(router.address) as client:
        with pytest.raises(InvalidRequest) as caught:
            await client.complete(model="toy", prompt="x")
    assert caught.value.violations == tuple(Violation(*fault) for fault in faults)


async def test_a_full_queue_tells_when_to_come_back(router):
    router.refusal = ServerError(Reason.QUEUE_FULL, "1024 requests wait", retry_after_s=1.25)
    async with Client(router.address) as client:
        with pytest.raises(QueueFull) as caught:
            await client.complete(model="toy", prompt="x")
        assert client.stats.retries == 0
    assert caught.value.retry_after_s == 1.25


async def test_a_live_request_id_is_already_taken(router, worker):
    worker.script = [refuse(Reason.DUPLICATE_REQUEST, "request r-1 is live")]
    async with Client(router.address) as client:
        with pytest.raises(AlreadyExists, match="r-1 is live"):
            await client.complete(model="toy", prompt="x", request_id="r-1")


async def test_a_server_of_another_kind_is_told_apart_from_a_lost_one():
    server = Server([])
    port = server.bind("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    for lookaside in (True, False):
        async with Client(address, lookaside=lookaside) as client:
            with pytest.raises(Unimplemented) as caught:
                await client.complete(model="toy", prompt="x")
            assert client.stats.retries == 0
        message = caught.value.message
        assert message.startswith(
            f"router {address} does not serve chiron.v1.InferenceService as a router does"
        )
        assert message.endswith("is it the address of a router?")
    await server.stop(0)


async def test_a_closed_client_refuses_work_and_ends_what_runs(router, worker):
    worker.script = [stall("Once")]
    client = Client(router.address)
    stream = client.generate(model="toy", prompt="x")
    await anext(stream)
    await client.close()
    with pytest.raises(ClientClosed):
        await anext(stream)
    with pytest.raises(ClientClosed):
        client.generate(model="toy", prompt="x")
    await eventually(lambda: worker.cancelled == 1)
    await client.close()


async def test_closing_ends_a_request_that_still_connects():
    with Blackhole() as silent:
        client = Client(silent.address, connect_timeout_s=30)
        whole = asyncio.create_task(client.complete(model="toy", prompt="x"))
        await eventually(silent.connections)
        await client.close()
        with pytest.raises(ClientClosed):
            await whole


async def test_a_message_over_the_size_limit_is_refused_here_with_both_sizes(router):
    async with Client(router.address) as client:
        with pytest.raises(InvalidRequest, match=r"request: is 16777\d+ bytes long; the limit is 16777216"):
            await client.complete(model="toy", prompt="x" * 16 * 1024 * 1024)
    assert not router.routed


async def test_every_error_of_the_service_can_be_caught_by_its_family(router):
    router.refusal = ServerError(Reason.NO_INSTANCE, "none")
    async with Client(router.address) as client:
        with pytest.raises(Unavailable):
            await client.complete(model="toy", prompt="x")
