"""What travels beside a request: credentials, metadata, trace context; and on what kind of wire."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from chiron.client import Client, ModelNotFound, TlsConfig, Unavailable
from chiron.rpc.errors import ChironError as ServerError
from chiron.rpc.errors import Reason
from tests.support.fake_inference import FakeDoor, FakeRouter, answer, refuse, serving

TLS = Path(__file__).parents[2] / "support" / "tls"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def worker():
    return FakeDoor("w-1")


@pytest.fixture
async def router(worker):
    router = FakeRouter(worker)
    async with serving(worker, router):
        yield router


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


async def test_the_api_key_goes_to_routers_and_never_to_workers(router, worker):
    async with Client(router.address, api_key="k-123") as client:
        await client.complete(model="toy", prompt="x")
    assert router.route_headers[0]["authorization"] == "Bearer k-123"
    assert "authorization" not in worker.headers[0]


async def test_the_api_key_goes_with_proxied_requests(router):
    async with Client(router.address, api_key="k-123", lookaside=False) as client:
        await client.complete(model="toy", prompt="x")
    assert router.headers[0]["authorization"] == "Bearer k-123"


async def test_metadata_of_the_client_and_of_the_request_reach_router_and_worker(router, worker):
    async with Client(router.address, metadata={"X-Team": "search"}) as client:
        await client.complete(model="toy", prompt="x", metadata={"x-trip": "7"})
    for headers in (router.route_headers[0], worker.headers[0]):
        assert (headers["x-team"], headers["x-trip"]) == ("search", "7")


async def test_a_given_traceparent_travels_without_any_tracing_set_up(router, worker):
    async with Client(router.address) as client:
        await client.complete(model="toy", prompt="x", traceparent=PARENT)
    assert router.route_headers[0]["traceparent"] == worker.headers[0]["traceparent"] == PARENT


async def test_a_request_is_one_client_span_that_router_and_worker_hang_under(router, worker, spans):
    worker.script = [refuse(Reason.RETRY_ELSEWHERE), answer()]
    second = FakeDoor("w-2")
    router.workers.append(second)
    async with serving(second), Client(router.address) as client:
        await client.complete(model="toy", prompt="x", max_tokens=9, temperature=0.5, traceparent=PARENT)
    (span,) = spans.get_finished_spans()
    assert (span.name, span.kind) == ("text_completion toy", SpanKind.CLIENT)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == tuple(PARENT.split("-")[1:3])
    expected = f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
    assert {each["traceparent"] for each in router.route_headers + worker.headers + second.headers} == {
        expected
    }
    facts = dict(span.attributes)
    assert facts["gen_ai.operation.name"] == "text_completion"
    assert facts["gen_ai.request.model"] == "toy"
    assert facts["gen_ai.request.max_tokens"] == 9
    assert facts["gen_ai.request.temperature"] == 0.5
    assert facts["gen_ai.usage.input_tokens"] == 5
    assert facts["gen_ai.usage.output_tokens"] == 4
    assert facts["gen_ai.response.finish_reasons"] == ("stop",)
    assert facts["chiron.instance.id"] == "w-2"
    assert facts["chiron.request.attempt"] == 1


async def test_a_failed_request_is_a_span_with_its_error(router, spans):
    router.refusal = ServerError(Reason.MODEL_NOT_FOUND, "no such model")
    async with Client(router.address) as client:
        with pytest.raises(ModelNotFound):
            await client.complete(model="nope", messages=[{"role": "user", "content": "Hi"}])
    (span,) = spans.get_finished_spans()
    assert span.name == "chat nope"
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "MODEL_NOT_FOUND"


async def test_a_stream_left_early_still_ends_its_span(router, spans):
    async with Client(router.address) as client, client.generate(model="toy", prompt="x") as stream:
        await anext(stream)
    (span,) = spans.get_finished_spans()
    assert "gen_ai.usage.output_tokens" not in span.attributes


async def test_a_stream_read_to_its_last_chunk_has_its_figures_in_the_span(router, spans):
    async with Client(router.address) as client, client.generate(model="toy", prompt="x") as stream:
        async for chunk in stream:
            if chunk.usage is not None:
                break
    (span,) = spans.get_finished_spans()
    assert span.attributes["gen_ai.usage.output_tokens"] == 4


def server_credentials(*, mutual: bool) -> grpc.ServerCredentials:
    pair = ((TLS / "server.key").read_bytes(), (TLS / "server.pem").read_bytes())
    ca = (TLS / "ca.pem").read_bytes() if mutual else None
    return grpc.ssl_server_credentials([pair], ca, require_client_auth=mutual)


async def test_tls_covers_router_and_worker():
    worker = FakeDoor("w-1")
    router = FakeRouter(worker)
    async with (
        serving(worker, router, credentials=server_credentials(mutual=False)),
        Client(router.address, tls=TlsConfig(ca=TLS / "ca.pem"), api_key="k") as client,
    ):
        whole = await client.complete(model="toy", prompt="x")
    assert whole.timing.instance_id == "w-1"


async def test_mutual_tls_shows_the_clients_certificate():
    worker = FakeDoor("w-1")
    router = FakeRouter(worker)
    tls = TlsConfig(
        ca=(TLS / "ca.pem").read_bytes(),
        cert=TLS / "client.pem",
        key=TLS / "client.key",
        server_name="server.test",
    )
    async with serving(worker, router, credentials=server_credentials(mutual=True)):
        async with Client(router.address, tls=tls) as client:
            assert (await client.complete(model="toy", prompt="x")).attempts == 1
        async with Client(router.address, tls=TlsConfig(ca=TLS / "ca.pem")) as stranger:
            with pytest.raises(Unavailable):
                await stranger.complete(model="toy", prompt="x")
    assert len(router.routed) == 1


async def test_a_certificate_of_an_unknown_authority_is_refused():
    router = FakeRouter(FakeDoor("w-1"))
    async with (
        serving(router, credentials=server_credentials(mutual=False)),
        Client(router.address, tls=TlsConfig(ca=TLS / "client.pem")) as client,
    ):
        with pytest.raises(Unavailable, match=r"(?i)certificate"):
            await client.complete(model="toy", prompt="x")


WITHOUT_OPENTELEMETRY = f"""
import asyncio, sys
sys.modules["opentelemetry"] = None
from chiron.client import Client

async def main():
    async with Client(sys.argv[1]) as client:
        print((await client.complete(model="toy", prompt="x", traceparent="{PARENT}")).text)

asyncio.run(main())
"""


async def test_without_opentelemetry_requests_work_and_a_given_context_travels(router, worker):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-c", WITHOUT_OPENTELEMETRY, router.address),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"Once upon a time\n", b"")
    assert worker.headers[0]["traceparent"] == PARENT
