"""The engine's own span of a request, under the trace that the caller began."""

from __future__ import annotations

from opentelemetry.trace import Span, SpanKind

from chiron.telemetry import attributes, extract, tracer
from services.worker.engines.base import EngineOutput, EngineRequest
from services.worker.engines.sim.stream import Stream


class RequestSpan:
    """`llm_request`, from submission to the last output; nothing without a trace context."""

    def __init__(self, request: EngineRequest, stream: Stream) -> None:
        self._stream = stream
        self._span: Span | None = None
        self._output_tokens = 0
        self._first_token: float | None = None
        if request.trace_headers:
            context = extract(request.trace_headers.items())
            self._span = tracer().start_span("llm_request", context, SpanKind.INTERNAL, {
                attributes.RESPONSE_ID: request.request_id,
                attributes.REQUEST_MAX_TOKENS: request.sampling.max_tokens,
                attributes.USAGE_INPUT_TOKENS: len(request.prompt_token_ids),
            })  # fmt: skip

    def note(self, output: EngineOutput) -> None:
        """Counts an output's tokens and remembers when the first came."""
        if self._span is None:
            return
        if self._first_token is None:
            self._first_token = output.time
        self._output_tokens += sum(len(delta.token_ids) for delta in output.deltas)

    def end(self) -> None:
        """Closes the span with what became of the request."""
        if self._span is None:
            return
        stream = self._stream
        self._span.set_attributes({
            attributes.USAGE_OUTPUT_TOKENS: self._output_tokens,
            attributes.CACHED_TOKENS: stream.cached_prompt_tokens,
            attributes.PREEMPTIONS: stream.preemptions,
            attributes.QUEUED_MS: 1e3 * (stream.queue_s or 0.0),
        })  # fmt: skip
        if self._first_token is not None:
            self._span.set_attribute(attributes.TTFT_MS, 1e3 * (self._first_token - stream.arrival))
        self._span.end()
