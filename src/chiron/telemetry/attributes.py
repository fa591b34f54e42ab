"""Span attribute names: OpenTelemetry's GenAI semantic conventions, and Chiron's own under `chiron.`."""

from __future__ import annotations

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

REQUEST_CLASS = "chiron.request.class"
ATTEMPT = "chiron.request.attempt"
INSTANCE_ID = "chiron.instance.id"
QUEUED_MS = "chiron.queued_ms"
TTFT_MS = "chiron.ttft_ms"
ITL_MEAN_MS = "chiron.itl_mean_ms"
CACHED_TOKENS = "chiron.usage.cached_tokens"
PREEMPTIONS = "chiron.preemptions"
PREEMPTION = "chiron.preemption"
"""Before the names of a preemption's own figures."""
PLACEMENT_REASON = "chiron.placement.reason"

PROVIDER_NAME = "chiron"
