"""The router's server spans; while tracing is off a caller's context is only passed on."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from chiron.rpc.errors import ChironError
from chiron.telemetry import attributes, extract, inject, tracer
from services.router.request import PendingRequest, Placement

Metadata = tuple[tuple[str, str], ...]
_CONTEXT_KEYS = frozenset({"traceparent", "tracestate", "baggage"})


class RequestTrace:
    """The trace of one call; every method is cheap when tracing is off."""

    __slots__ = ("_span", "headers", "ttft_ms")

    def __init__(
        self,
        enabled: bool,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]] | None,
        *,
        system: str = "grpc",
    ) -> None:
        """Starts the server span as a child of the caller's.

        Args:
            enabled: whether spans are exported.
            method: full name of the RPC, without a leading slash, or HTTP method and path.
            metadata: of the call; HTTP's headers, with lower-case names.
            system: what the caller speaks, `grpc` or `http`.
        """
        self._span: Span | None = None
        self.ttft_ms: float | None = None
        """Time to the first token, in milliseconds; None: there is none yet."""
        self.headers: Metadata = ()
        """What carries the context on to the worker."""
        if enabled:
            self._span = tracer().start_span(method, context=extract(metadata), kind=SpanKind.SERVER)
            if system == "grpc":
                self._span.set_attribute("rpc.system", system)
            self.headers = tuple(inject(trace.set_span_in_context(self._span)).items())
        elif metadata:
            self.headers = tuple(
                (key, value) for key, value in metadata if key in _CONTEXT_KEYS and isinstance(value, str)
            )

    def request(self, request: PendingRequest) -> None:
        """Notes what is asked."""
        if self._span is not None:
            self._span.set_attributes(
                {
                    attributes.PROVIDER: attributes.PROVIDER_NAME,
                    attributes.REQUEST_MODEL: request.model,
                    attributes.RESPONSE_ID: request.request_id,
                    attributes.REQUEST_CLASS: request.request_class.name.lower(),
                }
            )

    def placed(self, placement: Placement, attempt: int, queued_s: float) -> None:
        """Notes where it went, why, and after how long."""
        if self._span is not None:
            self._span.set_attributes(
                {
                    attributes.INSTANCE_ID: placement.instance_id,
                    attributes.PLACEMENT_REASON: placement.decision.reason,
                    attributes.QUEUED_MS: queued_s * 1000,
                    attributes.ATTEMPT: attempt,
                }
            )

    def first_message(self, ttft_ms: float) -> None:
        """Notes the time to the first token."""
        self.ttft_ms = ttft_ms
        if self._span is not None:
            self._span.set_attribute(attributes.TTFT_MS, ttft_ms)

    def handed_back(self, placement: Placement, preemptions: int) -> None:
        """Notes that an instance gave it back, for interactive work or because it drains."""
        if self._span is not None:
            self._span.add_event(
                "handed back",
                {attributes.INSTANCE_ID: placement.instance_id, attributes.PREEMPTIONS: preemptions},
            )

    def http(self, method: str, route: str, status: int) -> None:
        """Notes what HTTP says of it; `status` 0: nothing was answered."""
        if self._span is not None:
            self._span.set_attributes({"http.request.method": method, "http.route": route})
            if status:
                self._span.set_attribute("http.response.status_code", status)

    def error(self, reason: str, message: str) -> None:
        """Notes how it failed."""
        if self._span is not None:
            self._span.set_attribute("error.type", reason)
            self._span.set_status(Status(StatusCode.ERROR, message))

    def refused(self, error: ChironError) -> None:
        """Notes the router's own refusal."""
        self.error(error.reason.name, error.message)

    def end(self) -> None:
        """Ends the span."""
        if self._span is not None:
            self._span.end()
