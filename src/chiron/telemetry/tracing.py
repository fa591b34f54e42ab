"""OpenTelemetry set up by the standard OTEL_* variables, and W3C context in gRPC metadata."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.context import Context

from chiron.config import ConfigError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXIT_FLUSH_S = 2.0
"""Longest time that the end of a process waits for its last spans to be sent."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
_TIMEOUTS = ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT")
_log = logging.getLogger(__name__)


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

    A collector that cannot be reached costs the process nothing but `EXIT_FLUSH_S` at its end.

    Args:
        service: `service.name`, e.g. `chiron-router`; OTEL_SERVICE_NAME overrides it.
        attributes: more resource attributes.

    Raises:
        ConfigError: a variable has a value that cannot be used.
    """
    if not export_wanted():
        return
    for name in _PROTOCOLS:
        if os.environ.get(name, "grpc") != "grpc":
            _log.warning("tracing is off: %s=%s, and only grpc is supported", name, os.environ[name])
            return
    _check_values()
    # Not before: every start of a service, a worker and a command would pay for it.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME") or service
    resource = Resource.create({"service.name": name, **attributes})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    atexit.register(_flush, provider)


def _check_values() -> None:
    for name in _ENDPOINTS:
        try:
            urlsplit(os.environ.get(name, "")).port  # noqa: B018 - reading the port checks it
        except ValueError as error:
            raise ConfigError(f"{name}={os.environ[name]}: {error}") from error
    for name in _TIMEOUTS:
        try:
            float(os.environ.get(name) or 0)
        except ValueError:
            raise ConfigError(f"{name}={os.environ[name]}: not a number of seconds") from None


def _flush(provider: TracerProvider) -> None:
    """Sends what is left, for a bounded time: the exporter's own retries would hold the process longer."""
    # What fails from here on is summed up in the one line below.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    thread = threading.Thread(target=provider.shutdown, name="flush-spans", daemon=True)
    thread.start()
    thread.join(EXIT_FLUSH_S)
    if thread.is_alive():
        print(f"warning: some spans were not exported within {EXIT_FLUSH_S:g} s", file=sys.stderr)


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
