"""The fields that both ways of asking for text share, under the names of OpenAI's API and of vLLM's server.

What is said of the request itself is served; ACCEPTED and REFUSED name what else clients send.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

FLOAT32_MAX = 3.4028234663852886e38
Uint32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Float32 = Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)]
"""What the wire holds: a larger number would be infinite there."""
Positive = Annotated[int, Field(ge=1, le=2**32 - 1)]
"""A count of at least one."""
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast"]


class Fields(BaseModel):
    """Values of the wrong type are refused, never converted; fields that are not there too."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(Fields):
    """What a stream brings besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """No effect: nothing is padded."""
    continuous_usage_stats: bool | None = None
    """No effect: the counts come once, at the end."""


class Slo(Fields):
    """As chiron.v1.Slo; what is left open takes the defaults of the key, then of the model."""

    ttft_ms: float | None = None
    itl_ms: float | None = None
    deadline_s: float | None = None
    refuse_if_late: bool | None = None


class JsonSchema(Fields):
    """The schema of a `response_format`."""

    name: str
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Fields):
    """What the output must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Fields):
    """The same in vLLM's words: exactly one of them."""

    json_: str | dict[str, JsonValue] | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: list[str] | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TextFields(Fields):
    """What both requests have."""

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    """The same; load generators send it with text completions too."""
    n: Positive | None = None
    temperature: Float32 | None = None
    top_p: Float32 | None = None
    presence_penalty: Float32 | None = None
    frequency_penalty: Float32 | None = None
    logit_bias: dict[str, float] | None = None
    seed: Int64 | None = None
    stop: Annotated[list[str], BeforeValidator(_listed)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    service_tier: ServiceTier | None = None

    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=2**32 - 1)] | None = None
    """-1 and 0: all tokens."""
    min_p: Float32 | None = None
    repetition_penalty: Float32 | None = None
    min_tokens: Uint32 | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Uint32] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: str | None = None

    # Chiron's
    slo: Slo | None = None
    request_class: Literal["interactive", "batch"] | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None

    @property
    def streams(self) -> bool:
        """Whether the answer is to come piece by piece."""
        return bool(self.stream)

    @property
    def counts(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def copies(self) -> int:
        """Greedy choices are all the same: one is generated and given this often."""
        return (self.n or 1) if self.temperature == 0 else 1


ACCEPTED: frozenset[str] = frozenset(
    {
        "user",
        "safety_identifier",
        "session_id",
        "spaces_between_special_tokens",
    }
)
"""Harmless without effect, in both requests."""


class Refusal(NamedTuple):
    """Of a field that is known and not served."""

    neutral: tuple[object, ...]
    """Values that ask for nothing, and are accepted."""
    why: str


def refusal(why: str, *neutral: object) -> Refusal:
    """Refuses a field, unless it has a value that asks for nothing."""
    return Refusal(neutral, why)


_GUIDED = "vLLM has replaced it by `structured_outputs`, which is served"
REFUSED: dict[str, Refusal] = {
    "use_beam_search": refusal("beam search is not supported", False),
    "length_penalty": refusal("it belongs to beam search, which is not supported", 1.0),
    "prompt_logprobs": refusal("log probabilities are there for output tokens only"),
    "truncate_prompt_tokens": refusal("prompts are not truncated; one that is too long is refused"),
    "allowed_token_ids": refusal("not supported; `logit_bias` and `structured_outputs` are", []),
    "bad_words": refusal("not supported; `logit_bias` is", []),
    "logprob_token_ids": refusal("not supported; `logit_bias` and `top_logprobs` are", []),
    "cache_salt": refusal("prefix caches are kept apart by tenant already"),
    "kv_transfer_params": refusal("instances do not hand caches over to each other at a client's word"),
    "vllm_xargs": refusal("extensions of one engine are not reached through this API", {}),
    "guided_json": refusal(_GUIDED),
    "guided_regex": refusal(_GUIDED),
    "guided_choice": refusal(_GUIDED),
    "guided_grammar": refusal(_GUIDED),
    "guided_decoding_backend": refusal(_GUIDED),
}
"""What is known and not served, in both requests."""
