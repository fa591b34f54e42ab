"""A worker's span continues the caller's trace, and the engine's own span continues the worker's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from chiron.telemetry import attributes
from chiron.v1 import types_pb2
from tests.support.otlp import ReceivedSpan, otlp_receiver
from tests.support.worker_process import failure, read_all, request, worker_process

SPEC = {"name": "toy", "engine": "sim", "engineArgs": {"load_time_s": 0}}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
METADATA = (("traceparent", f"00-{TRACE}-{CALLER}-01"),)


async def test_one_trace_from_the_caller_to_the_engine(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        async with worker_process(tmp_path, SPEC, environ=environ) as worker:
            await worker.until()
            asked = request(request_id="traced", attempt=2, sampling={"max_tokens": 5})
            await read_all(worker.inference.Generate(asked, metadata=METADATA))
            async with asyncio.timeout(10):
                await receiver.received(2)
        spans = {span.name: span for span in receiver.spans}
        server, engine = spans["text_completion toy"], spans["llm_request"]
        assert (server.service, server.trace_id, server.parent_id) == ("chiron-worker", TRACE, CALLER)
        assert (engine.trace_id, engine.parent_id) == (TRACE, server.span_id)
        assert _facts(server) == {
            attributes.OPERATION: "text_completion",
            attributes.PROVIDER: "chiron",
            attributes.REQUEST_MODEL: "toy",
            attributes.REQUEST_MAX_TOKENS: 5,
            attributes.REQUEST_TEMPERATURE: 0.0,
            attributes.RESPONSE_ID: "traced",
            attributes.RESPONSE_FINISH_REASONS: ["length"],
            attributes.USAGE_INPUT_TOKENS: 6,
            attributes.USAGE_OUTPUT_TOKENS: 5,
            attributes.CACHED_TOKENS: 0,
            attributes.PREEMPTIONS: 0,
            attributes.REQUEST_CLASS: "interactive",
            attributes.ATTEMPT: 2,
            attributes.INSTANCE_ID: "toy-000001",
        }
        assert engine.attributes[attributes.USAGE_OUTPUT_TOKENS] == 5
        assert 0 < engine.attributes[attributes.TTFT_MS] <= server.attributes[attributes.TTFT_MS] + 0.001


async def test_a_refusal_is_a_span_with_its_reason(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        async with worker_process(tmp_path, SPEC, environ=environ) as worker:
            await worker.until()
            await failure(worker.inference.Generate(request(model="llama"), metadata=METADATA))
            async with asyncio.timeout(10):
                await receiver.received(1)
        (span,) = receiver.spans
        assert span.attributes["error.type"] == "MODEL_NOT_FOUND"


async def test_who_gave_way_for_whom_is_in_both_traces(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        spec = {**SPEC, "maxBatchSize": 1}
        async with worker_process(tmp_path, spec, environ=environ) as worker:
            await worker.until()
            work = request(
                request_id="work", request_class=types_pb2.REQUEST_CLASS_BATCH, sampling={"max_tokens": 200}
            )
            batch = worker.inference.Generate(work)
            for _ in range(20):
                await batch.read()
            await read_all(worker.inference.Generate(request(request_id="urgent")))
            await read_all(batch)
            async with asyncio.timeout(10):
                await receiver.received(4)
    # A worker's own spans have its id; the engine's do not.
    own = [span for span in receiver.spans if attributes.INSTANCE_ID in span.attributes]
    events = {span.attributes[attributes.RESPONSE_ID]: span.events for span in own}
    chosen = events["urgent"]["batch work gives way"]
    assert chosen["chiron.preemption.reason"] == "latest deadline, then least progress lost"
    assert chosen["chiron.preemption.slots_needed"] == chosen["chiron.preemption.slots_freed"] == 1
    gone = events["work"]["preempted for an interactive request"]
    assert gone["chiron.preemption.for"] == "urgent"
    assert gone["chiron.preemption.tokens_lost"] == chosen["chiron.preemption.tokens_lost"] > 20


def _facts(span: ReceivedSpan) -> dict[str, object]:
    times = (attributes.TTFT_MS, attributes.ITL_MEAN_MS, attributes.QUEUED_MS)
    assert all(span.attributes[name] >= 0 for name in times)
    return {key: value for key, value in span.attributes.items() if key not in times}
