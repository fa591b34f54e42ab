"""An OTLP receiver on loopback."""

from __future__ import annotations

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.wait import eventually


class SpanReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span it is sent."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._server = grpc.aio.server()
        self.endpoint = ""

    async def start(self) -> None:
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    async def Export(
        self,
        request: trace_service_pb2.ExportTraceServiceRequest,
        context: grpc.aio.ServicerContext[object, object],
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self._spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    async def span(self, name: str, trace_id: str) -> Span:
        """The one span of that name in the trace (32 hexadecimal digits)."""
        (span,) = await eventually(
            lambda: [each for each in self._spans if (each.name, each.trace_id.hex()) == (name, trace_id)],
            what=f"a span {name} of trace {trace_id} arrives",
        )
        return span
