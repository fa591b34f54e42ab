"""OpenTelemetry set up by the standard OTEL_* variables, and W3C context in gRPC metadata."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def export_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """True when the OTEL_* variables name an OTLP endpoint and do not switch tracing off."""
    environ = os.environ if environ is None else environ
    if (
        environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or environ.get("OTEL_TRACES_EXPORTER") == "none"
    ):
        return False
    return any(environ.get(name) for name in _ENDPOINTS)


def setup_tracing(service: str, **attributes: str) -> None:
    """Exports spans over OTLP/gRPC when the environment asks for it; otherwise spans cost nothing.

    Args:
        service: `service.name`, e.g. `chiron-router`; OTEL_SERVICE_NAME overrides it.
        attributes: more resource attributes.
    """
    if not export_wanted():
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    name = os.environ.get("OTEL_SERVICE_NAME") or service
    # At the end of the process it sends what is left by itself.
    provider = TracerProvider(resource=Resource.create({"service.name": name, **attributes}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def tracer() -> trace.Tracer:
    """Chiron's tracer; its spans do nothing until `setup_tracing` found an endpoint."""
    return trace.get_tracer("chiron")


def extract(metadata: Iterable[tuple[str, str | bytes]] | None) -> Context:
    """The caller's trace context from gRPC metadata."""
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    return propagate.extract(carrier)


def inject(context: Context | None = None) -> dict[str, str]:
    """W3C headers (traceparent, tracestate) of the current or given context; empty without a span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return carrier
