"""The router in front of real worker processes with the sim engine."""

from __future__ import annotations

import asyncio
import signal

import pytest

from chiron.internal.v1 import control_pb2
from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc, types_pb2
from tests.integration.router.conftest import RealWorker
from tests.support.wait import eventually


@pytest.fixture
async def start_serving(start_router, controller):
    async def start(*workers: RealWorker, **options: object):
        controller.add("m")
        for worker in workers:
            controller.table.instances.append(
                control_pb2.RoutedInstance(
                    instance_id=worker.instance_id,
                    incarnation=1,
                    model="m",
                    address=worker.address,
                    role=types_pb2.ROLE_MIXED,
                    state=types_pb2.INSTANCE_STATE_READY,
                )
            )
        router = await start_router(**options)
        await router.sees(*workers)
        return router

    return start


def request(request_id: str, tokens: int = 5) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=tokens, ignore_eos=True)
    return pb.GenerateRequest(request_id=request_id, model="m", prompt="one two three", sampling=sampling)


async def tokens_of(call) -> int:
    return sum(len(delta.token_ids) for response in [r async for r in call] for delta in response.deltas)


async def text_of(call) -> str:
    return "".join([delta.text async for response in call for delta in response.deltas])


async def test_proxied_and_direct_answers_are_the_same_length(start_real, start_serving) -> None:
    router = await start_serving(await start_real("a"))
    assert await tokens_of(router.stub.Generate(request("proxied"))) == 5
    route = await router.stub.Route(pb.RouteRequest(request_id="direct", model="m"))
    async with open_channel(route.address) as channel:
        direct = request("direct")
        direct.ticket = route.ticket
        assert await tokens_of(inference_pb2_grpc.InferenceServiceStub(channel).Generate(direct)) == 5


async def test_more_requests_than_slots_are_all_answered(start_real, start_serving) -> None:
    router = await start_serving(await start_real("a", batch_size=2), await start_real("b", batch_size=2))
    calls = [tokens_of(router.stub.Generate(request(f"r{n}"))) for n in range(20)]
    assert await asyncio.gather(*calls) == [5] * 20
    await eventually(lambda: router.core._reservations.next_expiry is None)


async def test_a_killed_workers_streams_go_on_elsewhere_as_if_nothing_had_happened(
    start_real, start_serving
) -> None:
    workers = [await start_real("a"), await start_real("b")]
    router = await start_serving(*workers)
    undisturbed = await text_of(router.stub.Generate(request("whole", tokens=600)))
    call = router.stub.Generate(request("long", tokens=600))
    chunks = call.__aiter__()
    begin = (await anext(chunks)).deltas[0].text
    instances = router.core._instances
    running = await eventually(lambda: [key for key, seen in instances.items() if "long" in seen._started])
    [victim] = [worker for worker in workers if [worker.instance_id] == running]
    victim.process.send_signal(signal.SIGKILL)
    assert begin + await text_of(chunks) == undisturbed
    assert await tokens_of(router.stub.Generate(request("next"))) == 5


async def test_a_cancelled_stream_frees_its_slot(start_real, start_serving) -> None:
    router = await start_serving(await start_real("a", batch_size=1), worker_queue=0)
    call = router.stub.Generate(request("long", tokens=2000))
    await anext(call.__aiter__())
    call.cancel()
    assert await tokens_of(router.stub.Generate(request("next"))) == 5
