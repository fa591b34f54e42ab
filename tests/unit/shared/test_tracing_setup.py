"""When spans are exported, and how context crosses gRPC metadata."""

from __future__ import annotations

import pytest
from opentelemetry import trace

from chiron.telemetry import extract, inject
from chiron.telemetry.tracing import export_wanted

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_spans_are_exported_only_when_the_environment_says_so(environ: dict[str, str], wanted: bool) -> None:
    assert export_wanted(environ) is wanted


def test_the_callers_context_comes_out_of_metadata_and_goes_on() -> None:
    context = extract([("traceparent", PARENT), ("key-bin", b"\x00")])
    span = trace.get_current_span(context).get_span_context()
    assert f"{span.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert inject(context)["traceparent"] == PARENT


def test_without_a_caller_nothing_is_passed_on() -> None:
    assert inject(extract(None)) == {}
