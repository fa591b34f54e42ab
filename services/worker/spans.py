"""The worker's span of a request, between the caller's span and the engine's own."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from chiron.rpc.errors import ChironError
from chiron.telemetry import attributes, extract, tracer
from chiron.telemetry.decisions import PARENT_VARIABLE, record_span
from chiron.v1 import inference_pb2 as pb
from chiron.v1 import types_pb2
from services.worker.pace import Pace


class StartTrace:
    """What this worker adds to the trace of the decision that started it: its load, and its first answer."""

    def __init__(self, instance_id: str, environ: Mapping[str, str] = os.environ) -> None:
        """Reads the decision's context from the environment; without one nothing is told."""
        self._parent = environ.get(PARENT_VARIABLE, "")
        self._about = {attributes.INSTANCE_ID: instance_id}
        self._waits = bool(self._parent)

    def loaded(self, took_ms: float) -> None:
        """The engine has loaded; it began so many milliseconds ago."""
        now_ns = time.time_ns()
        record_span("chiron.worker.load", self._parent, now_ns - round(took_ms * 1e6), now_ns, self._about)

    def served(self, span: RequestSpan, arrival: float) -> None:
        """A request has been answered whole; the first one alone counts. arrival: monotonic, in seconds."""
        if not self._waits:
            return
        self._waits = False
        now_ns = time.time_ns()
        began_ns = now_ns - round((time.monotonic() - arrival) * 1e9)
        links = (span.context,)
        record_span("chiron.worker.first_request", self._parent, began_ns, now_ns, self._about, links)


class RequestSpan:
    """A server span that is current inside the `with` block."""

    def __init__(
        self,
        request: pb.GenerateRequest,
        metadata: Iterable[tuple[str, str | bytes]] | None,
        instance_id: str,
    ) -> None:
        operation = "chat" if request.WhichOneof("input") == "chat" else "text_completion"
        batch = request.request_class == types_pb2.REQUEST_CLASS_BATCH
        self._scope = tracer().start_as_current_span(
            f"{operation} {request.model}",
            extract(metadata),
            SpanKind.SERVER,
            {
                attributes.OPERATION: operation,
                attributes.PROVIDER: attributes.PROVIDER_NAME,
                attributes.REQUEST_MODEL: request.model,
                attributes.REQUEST_CLASS: "batch" if batch else "interactive",
                attributes.ATTEMPT: request.attempt,
                attributes.INSTANCE_ID: instance_id,
            },
            # The refusal that ends a call is recorded with its reason, not as an exception.
            record_exception=False,
            set_status_on_exception=False,
        )
        self._span: trace.Span = trace.INVALID_SPAN

    def __enter__(self) -> Self:
        self._span = self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, where)

    @property
    def context(self) -> trace.SpanContext:
        """What others link to."""
        return self._span.get_span_context()

    def admitted(self, request_id: str, sampling: pb.SamplingParams) -> None:
        """The request was understood."""
        if not self._span.is_recording():
            return
        self._span.set_attribute(attributes.RESPONSE_ID, request_id)
        self._span.set_attribute(attributes.REQUEST_MAX_TOKENS, sampling.max_tokens)
        if sampling.HasField("temperature"):
            self._span.set_attribute(attributes.REQUEST_TEMPERATURE, sampling.temperature)
        if sampling.HasField("top_p"):
            self._span.set_attribute(attributes.REQUEST_TOP_P, sampling.top_p)

    def note(self, name: str, numbers: Mapping[str, float | str]) -> None:
        """Adds an event, with its numbers."""
        if self._span.is_recording():
            self._span.add_event(
                name, {f"{attributes.PREEMPTION}.{key}": each for key, each in numbers.items()}
            )

    def finished(self, pace: Pace) -> None:
        """The last token is out."""
        if not self._span.is_recording():
            return
        self._span.set_attributes({
            attributes.USAGE_INPUT_TOKENS: pace.usage().prompt_tokens,
            attributes.USAGE_OUTPUT_TOKENS: pace.tokens,
            attributes.CACHED_TOKENS: pace.cached_tokens,
            attributes.PREEMPTIONS: pace.preemptions,
            attributes.TTFT_MS: pace.ttft_ms,
            attributes.ITL_MEAN_MS: pace.itl_mean_ms,
            attributes.QUEUED_MS: pace.queue_ms,
            attributes.RESPONSE_FINISH_REASONS: pace.finish_reasons,
        })  # fmt: skip

    def failed(self, error: ChironError) -> None:
        """The call ends with a typed error."""
        self._span.set_attribute("error.type", error.reason.name)
        self._span.set_status(StatusCode.ERROR, error.message)
