"""OpenAI's client, the HTTP door and a worker process: what a client leaves is free at once."""

from __future__ import annotations

import asyncio

import pytest

from chiron.v1 import types_pb2
from tests.support.http_door import ANY, openai_at
from tests.support.wait import eventually

LONG = {"model": "m", "prompt": "Tell me.", "max_tokens": 3000, "extra_body": {"ignore_eos": True}}


@pytest.fixture
async def served(start_router, start_real, controller):
    """A client, a router, and the load of a worker that has one slot."""
    worker = await start_real("a", batch_size=1)
    controller.add("m", [])
    instance = controller.table.instances.add(
        instance_id="a", incarnation=1, model="m", address=worker.address, role=types_pb2.ROLE_MIXED
    )
    instance.state = types_pb2.INSTANCE_STATE_READY
    router = await start_router(http=ANY, worker_queue=0)
    await eventually(lambda: "a" in router.core._instances and router.core._instances["a"].usable)

    def running() -> int:
        load = router.core._instances["a"].load
        return load.running.interactive

    async with openai_at(router.router.http_url) as client:
        yield client, running


async def test_a_stream_that_is_closed_frees_its_slot(served) -> None:
    client, running = served
    stream = await client.completions.create(**LONG, stream=True)
    assert (await anext(stream)).choices[0].text
    await eventually(lambda: running() == 1)
    await stream.close()
    await eventually(lambda: running() == 0)
    answer = await client.completions.create(model="m", prompt="Now.", max_tokens=2)
    assert answer.usage.completion_tokens == 2


async def test_a_request_that_is_given_up_frees_its_slot(served) -> None:
    client, running = served
    asking = asyncio.create_task(client.completions.create(**LONG))
    await eventually(lambda: running() == 1)
    asking.cancel()
    await eventually(lambda: running() == 0)
    with pytest.raises(asyncio.CancelledError):
        await asking
