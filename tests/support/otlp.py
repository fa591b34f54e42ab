"""A real OTLP/gRPC trace receiver on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One exported span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for a root."""
    attributes: dict[str, Any]
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name → attributes of the last one of that name."""
    start_ns: int = 0
    end_ns: int = 0
    links: tuple[tuple[str, str], ...] = ()
    """(trace id, span id) of spans of other traces."""


class OtlpReceiver:
    """Keeps every span that it is sent, and wakes those who wait for them."""

    def __init__(self) -> None:
        self.endpoint = ""
        """Value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        self.spans: list[ReceivedSpan] = []
        self._changed = asyncio.Condition()

    async def received(self, count: int) -> None:
        """Returns once so many spans have come; the caller bounds the wait."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.spans) >= count)

    async def until(self, enough: Callable[[Sequence[ReceivedSpan]], bool]) -> None:
        """Returns once the spans that have come are enough; the caller bounds the wait."""
        async with self._changed:
            await self._changed.wait_for(lambda: enough(self.spans))

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """The spans of one trace, in the order in which they began."""
        return sorted((one for one in self.spans if one.trace_id == trace_id), key=lambda one: one.start_ns)

    async def Export(
        self, request: pb.ExportTraceServiceRequest, context: object
    ) -> pb.ExportTraceServiceResponse:
        async with self._changed:
            for resource in request.resource_spans:
                facts = {a.key: a.value.string_value for a in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self.spans += [_span(facts.get("service.name", ""), span) for span in scope.spans]
            self._changed.notify_all()
        return pb.ExportTraceServiceResponse()


def _span(service: str, span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes={a.key: _value(a.value) for a in span.attributes},
        events={event.name: {a.key: _value(a.value) for a in event.attributes} for event in span.events},
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind) if kind else None


@asynccontextmanager
async def otlp_receiver() -> AsyncIterator[OtlpReceiver]:
    """Serves on a free port."""
    receiver = OtlpReceiver()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    receiver.endpoint = f"http://127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        await server.stop(None)
