"""One client span per request where OpenTelemetry is installed, and W3C context on the wire.

Attribute names are those of OpenTelemetry's semantic conventions for generative AI, and Chiron's own under
`chiron.`. Without the package, a given `traceparent` still travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from chiron.client.errors import ChironError
from chiron.client.output import FinishReason, Timing, Usage
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

try:
    from opentelemetry import propagate, trace
except ImportError:
    _INSTALLED = False
else:
    _INSTALLED = True


class RequestSpan(Protocol):
    """The span of one request."""

    def headers(self) -> dict[str, str]:
        """Metadata that carries the trace context."""

    def finished(
        self, usage: Usage, timing: Timing, reasons: Iterable[FinishReason | None], attempts: int
    ) -> None:
        """The answer is whole."""

    def failed(self, error: ChironError, attempts: int) -> None:
        """The request ended with an error."""

    def end(self) -> None:
        """The request is over."""


def start_span(request: pb.GenerateRequest, traceparent: str) -> RequestSpan:
    """Starts the span of `request`, under `traceparent` where it is given, else under the current span."""
    return _Span(request, traceparent) if _INSTALLED else _NoSpan(traceparent)


class _NoSpan:
    def __init__(self, traceparent: str) -> None:
        self._traceparent = traceparent

    def headers(self) -> dict[str, str]:
        return {"traceparent": self._traceparent} if self._traceparent else {}

    def finished(
        self, usage: Usage, timing: Timing, reasons: Iterable[FinishReason | None], attempts: int
    ) -> None:
        pass

    def failed(self, error: ChironError, attempts: int) -> None:
        pass

    def end(self) -> None:
        pass


class _Span:
    def __init__(self, request: pb.GenerateRequest, traceparent: str) -> None:
        operation = "chat" if request.WhichOneof("input") == "chat" else "text_completion"
        attributes: dict[str, str | int | float] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "chiron",
            "gen_ai.request.model": request.model,
            "gen_ai.response.id": request.request_id,
            "chiron.request.class": "batch"
            if request.request_class == types_pb2.REQUEST_CLASS_BATCH
            else "interactive",
        }
        for name in ("max_tokens", "temperature", "top_p"):
            if request.sampling.HasField(name):
                attributes[f"gen_ai.request.{name}"] = getattr(request.sampling, name)
        parent = propagate.extract({"traceparent": traceparent}) if traceparent else None
        self._span = trace.get_tracer("chiron.client").start_span(
            f"{operation} {request.model}", parent, trace.SpanKind.CLIENT, attributes
        )
        self._headers: dict[str, str] = {}
        propagate.inject(self._headers, trace.set_span_in_context(self._span, parent))

    def headers(self) -> dict[str, str]:
        return self._headers

    def finished(
        self, usage: Usage, timing: Timing, reasons: Iterable[FinishReason | None], attempts: int
    ) -> None:
        self._span.set_attributes(
            {
                "gen_ai.response.finish_reasons": [reason.value for reason in reasons if reason],
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "chiron.usage.cached_tokens": usage.cached_prompt_tokens,
                "chiron.instance.id": timing.instance_id,
                "chiron.ttft_ms": timing.client_ttft_ms,
                "chiron.itl_mean_ms": timing.client_itl_mean_ms,
                "chiron.request.attempt": attempts - 1,
            }
        )

    def failed(self, error: ChironError, attempts: int) -> None:
        self._span.set_attributes({"error.type": error.reason, "chiron.request.attempt": attempts - 1})
        self._span.set_status(trace.StatusCode.ERROR, error.message)

    def end(self) -> None:
        self._span.end()
