"""The router's span is a child of the caller's and the parent of what the worker does."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from chiron.rpc.servers import open_channel
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import inference_pb2_grpc
from tests.support.fake_worker import FakeWorker
from tests.support.otlp import otlp_receiver

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


async def test_spans_continue_the_callers_trace_and_say_why_the_instance_was_chosen(
    start_worker, controller
) -> None:
    worker: FakeWorker = await start_worker("a")
    controller.add("m", [worker])
    async with otlp_receiver() as receiver:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.router", "--set", "listen=127.0.0.1:0"),
            *("--set", f"controller={controller.address}"),
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint},
        )
        address = json.loads(await process.stdout.readline())["address"]
        async with open_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            await controller.hellos.get()
            call = stub.Generate(
                pb.GenerateRequest(request_id="r", model="m", prompt="x"),
                metadata=(("traceparent", TRACEPARENT),),
            )
            answered = await worker.calls.get()
            answered.text("hi")
            answered.finish()
            async for _ in call:
                pass
            route = pb.RouteRequest(request_id="s", model="m")
            await stub.Route(route, metadata=(("traceparent", TRACEPARENT),))
        # Spans that are still held go out when the process ends.
        process.terminate()
        assert await process.wait() == 0
        await process.communicate()
        await asyncio.wait_for(receiver.received(2), 10)
    spans = {span.name: span for span in receiver.spans}
    generate = spans["chiron.v1.InferenceService/Generate"]
    assert (generate.service, generate.trace_id, generate.parent_id) == ("chiron-router", TRACE, CALLER)
    assert answered.metadata["traceparent"] == f"00-{TRACE}-{generate.span_id}-01"
    assert generate.attributes["gen_ai.request.model"] == "m"
    assert generate.attributes["gen_ai.response.id"] == "r"
    assert generate.attributes["chiron.instance.id"] == "a"
    assert generate.attributes["chiron.placement.reason"] == "free slot on a mixed instance"
    assert generate.attributes["chiron.queued_ms"] >= 0
    assert spans["chiron.v1.InferenceService/Route"].parent_id == CALLER


async def test_without_tracing_the_callers_context_is_passed_on(start_worker, start_router) -> None:
    worker = await start_worker("a")
    router = await start_router(worker)
    call = router.stub.Generate(
        pb.GenerateRequest(model="m", prompt="x"), metadata=(("traceparent", TRACEPARENT), ("cookie", "no"))
    )
    answered = await worker.calls.get()
    answered.finish()
    async for _ in call:
        pass
    assert answered.metadata["traceparent"] == TRACEPARENT
    assert "cookie" not in answered.metadata
