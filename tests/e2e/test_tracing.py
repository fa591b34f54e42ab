"""One trace from the SDK to the engine, received over OTLP/gRPC as a collector would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from chiron.cluster import LocalCluster
from chiron.v1 import cluster_pb2 as pb
from tests.support.chiron_command import chiron
from tests.support.otlp import OtlpReceiver, ReceivedSpan, otlp_receiver

DECISIONS = ("chiron.decision", "chiron.agent.", "chiron.worker.")


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with otlp_receiver() as running:
        yield running


async def trace_of(receiver: OtlpReceiver, directory: Path, mode: str) -> dict[str, ReceivedSpan]:
    """The spans of one request by who made them: client, router, worker, engine."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    async with LocalCluster(nodes=1, gpus=1, directory=directory, environ=variables) as cluster:
        await cluster.apply([pb.ModelSpec(name="toy", engine="sim", gpus_per_instance=1, min_instances=1)])
        await cluster.wait_ready()
        router = f"--router={cluster.router_addresses[0]}"
        answer = await chiron("generate", "toy", "hi", "--max-tokens=4", mode, router, **variables)
        assert answer.status == 0, answer.stderr
        async with asyncio.timeout(20):
            await receiver.until(lambda spans: len(list(filter(of_requests, spans))) >= 4)
    # The cluster has stopped and its exporters have flushed: what came is all there is.
    spans = list(filter(of_requests, receiver.spans))
    assert len(spans) == 4
    assert len({span.trace_id for span in spans}) == 1
    client = one(span for span in spans if span.service == "chiron-cli")
    router_span = one(span for span in spans if span.service == "chiron-router")
    of_worker = {span.span_id: span for span in spans if span.service == "chiron-worker"}
    engine = one(span for span in of_worker.values() if span.parent_id in of_worker)
    worker = of_worker[engine.parent_id]
    return {"client": client, "router": router_span, "worker": worker, "engine": engine}


def of_requests(span: ReceivedSpan) -> bool:
    """Whether it is part of no decision's trace: those have an id of their own in every span."""
    return "chiron.decision.id" not in span.attributes and not span.name.startswith(DECISIONS)


def one(spans: Iterable[ReceivedSpan]) -> ReceivedSpan:
    (span,) = spans
    return span


async def test_a_proxied_request_is_one_chain_of_spans(receiver: OtlpReceiver, tmp_path: Path) -> None:
    spans = await trace_of(receiver, tmp_path, "--proxy")

    assert spans["client"].parent_id == ""
    assert spans["router"].parent_id == spans["client"].span_id
    assert spans["worker"].parent_id == spans["router"].span_id
    assert spans["engine"].parent_id == spans["worker"].span_id
    assert spans["router"].name == "chiron.v1.InferenceService/Generate"


async def test_a_lookaside_request_asks_the_router_and_streams_from_the_worker(
    receiver: OtlpReceiver, tmp_path: Path
) -> None:
    spans = await trace_of(receiver, tmp_path, "--lookaside")

    assert spans["client"].parent_id == ""
    assert spans["router"].parent_id == spans["client"].span_id
    assert spans["worker"].parent_id == spans["client"].span_id
    assert spans["engine"].parent_id == spans["worker"].span_id
    # The command tells what a request waits for, and so asks to be told.
    assert spans["router"].name == "chiron.v1.InferenceService/WatchRoute"
    for who in ("client", "router", "worker"):
        assert spans[who].attributes["gen_ai.provider.name"] == "chiron", who
        assert spans[who].attributes["gen_ai.request.model"] == "toy", who
    assert spans["client"].attributes["gen_ai.usage.output_tokens"] == 4
    assert spans["client"].attributes["gen_ai.operation.name"] == "text_completion"
    assert spans["client"].attributes["gen_ai.response.finish_reasons"] == ["length"]
