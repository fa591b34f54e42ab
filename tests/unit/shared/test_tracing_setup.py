"""When spans are exported, and how context crosses gRPC metadata."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
from opentelemetry import trace

from chiron.config import ConfigError
from chiron.telemetry import extract, inject, setup_tracing
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


def run_with(environ: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


ONE_SPAN = (
    "from chiron.telemetry import setup_tracing, tracer\n"
    "setup_tracing('test')\n"
    "tracer().start_span('one').end()\n"
    "print('done')"
)


def test_a_collector_that_is_gone_costs_one_warning_at_the_end() -> None:
    with socket.socket() as taken:
        # Bound and not listening: connections are refused.
        taken.bind(("127.0.0.1", 0))
        run = run_with(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}"}, ONE_SPAN
        )
    assert (run.returncode, run.stdout) == (0, "done\n")
    assert run.stderr == "warning: some spans were not exported within 2 s\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[bad"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:port"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "abc"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(f"{name}={value}")):
        setup_tracing("test")


def test_another_protocol_than_grpc_switches_tracing_off_with_a_warning() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    run = run_with(environ, ONE_SPAN)
    assert (run.returncode, run.stdout) == (0, "done\n")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in run.stderr
