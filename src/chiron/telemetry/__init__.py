"""Tracing: one trace from the SDK through router and worker to the engine's own span."""

from chiron.telemetry.tracing import extract, inject, setup_tracing, tracer

__all__ = ["extract", "inject", "setup_tracing", "tracer"]
