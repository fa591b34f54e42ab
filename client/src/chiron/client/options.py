"""What a request can say: the keyword arguments of `generate` and `complete`, and their types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Required, TypedDict

from chiron.client.output import Progress


class RequestClass(StrEnum):
    """Which promise a request carries."""

    INTERACTIVE = "interactive"
    """Somebody waits: time to first token and time between tokens matter."""
    BATCH = "batch"
    """Only a deadline of minutes to hours matters."""


@dataclass(frozen=True, slots=True)
class Slo:
    """The service-level objective of one request; None takes the model's default for the class."""

    ttft_ms: float | None = None
    """Time from the router's door to the first token, in milliseconds; > 0."""
    itl_ms: float | None = None
    """Mean time between tokens after the first, in milliseconds; > 0."""
    deadline_s: float | None = None
    """Time until the whole result must be there, in seconds; > 0. A request that has no instance by then ends
    with DeadlineExceeded; one that runs goes on."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str
    name: str = ""
    """Name of the author, where the model's template knows one."""
    tool_call_id: str = ""
    """The call that a tool message answers."""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """The calls that an assistant message made, in OpenAI's form."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """Constrains the output to JSON of a schema."""

    schema: Mapping[str, Any] | str
    """The schema as a mapping or as JSON text."""


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Constrains the output to any JSON object."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Constrains the output to matches of a regular expression."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Grammar:
    """Constrains the output to a grammar in the engine's EBNF dialect."""

    text: str


@dataclass(frozen=True, slots=True)
class OneOf:
    """Constrains the output to one of several texts."""

    values: Sequence[str]


StructuredOutput = JsonSchema | JsonObject | Regex | Grammar | OneOf


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen and when generation ends; None is as good as left out."""

    max_tokens: int | None
    """Most output tokens, >= 1. Default: as many as the context has room for."""
    min_tokens: int
    """Fewest output tokens before a stop condition counts. Default: 0."""
    temperature: float | None
    """>= 0; 0 is greedy. Default: 1."""
    top_p: float | None
    """(0, 1]. Default: 1."""
    top_k: int | None
    """>= 1. Default: all tokens."""
    min_p: float
    """[0, 1]. Default: 0."""
    presence_penalty: float
    """-2 to 2. Default: 0."""
    frequency_penalty: float
    """-2 to 2. Default: 0."""
    repetition_penalty: float | None
    """> 0. Default: 1, which is none."""
    seed: int | None
    """Makes sampling repeatable; choice i of n uses seed + i."""
    n: int
    """Choices to generate, 1 to 16. Default: 1."""
    stop: str | Sequence[str]
    """Generation ends before the first of these strings; at most 16."""
    stop_token_ids: Sequence[int]
    """Generation ends at the first of these tokens."""
    include_stop: bool
    """Keep the stop string in the text. Default: False."""
    ignore_eos: bool
    """Do not stop at the end-of-sequence token. Default: False."""
    logprobs: int | None
    """Alternatives to return per token, 0 to 20. Default: no logprobs."""
    logit_bias: Mapping[int, float]
    """Added to the logits of these token ids, each -100 to 100."""
    structured_output: StructuredOutput | None
    """Constrains the output."""
    keep_special_tokens: bool
    """Leave special tokens in the text. Default: False."""


class RequestOptions(SamplingOptions, total=False):
    """The keyword arguments of `generate` and `complete`: a model and exactly one kind of prompt."""

    model: Required[str]
    """Name of an applied model."""
    prompt: str | None
    """Plain text."""
    prompt_token_ids: Sequence[int] | None
    """Token ids of the model's own tokenizer."""
    messages: Sequence[Message | Mapping[str, Any]] | None
    """A chat, rendered by the model's template; mappings have the keys of Message."""
    tools: Sequence[Mapping[str, Any]]
    """Tool definitions in OpenAI's form; only with messages."""
    tool_choice: Literal["none", "auto", "required"] | Mapping[str, Any] | None
    """Has the calls that the model writes parsed (`Choice.parsed`), which takes a model with a tool parser:
    `auto` leaves it to the model to call, `required` does not, and a mapping
    `{"type": "function", "function": {"name": ...}}` names the tool it must call. Default: all is text."""
    parallel_tool_calls: bool | None
    """False: of an answer with several calls only the first counts. Default: all do."""
    template_kwargs: Mapping[str, Any]
    """More variables for the chat template; only with messages."""
    request_class: RequestClass | Literal["interactive", "batch"]
    """Default: interactive."""
    slo: Slo | None
    """Default: the model's own."""
    refuse_if_late: bool | None
    """Raise SloOutOfReach at once, with the estimate, where the request would wait in the router for longer
    than its SLO allows. Default: as the model or the router has it."""
    priority: int
    """Order within the class, -1000 to 1000: a lower value is more urgent. Default: 0."""
    adapter: str
    """Name of a LoRA adapter of the model. Default: the base model."""
    request_id: str
    """1 to 128 characters of [A-Za-z0-9._:-], unique among live requests. Default: a new one."""
    timeout_s: float | None
    """Gives the request up after this many seconds, all attempts together. Default: the client's."""
    metadata: Mapping[str, str]
    """More gRPC metadata to send along."""
    on_progress: Callable[[Progress], None] | None
    """Called with what the request waits for: at once when a router lets it wait, when that changes and each
    second. It runs on the client's event loop, of a SyncClient in that one's thread: it must return soon, and
    what it raises ends the request."""
    traceparent: str
    """W3C trace context of the caller, where it does not come from OpenTelemetry's current span."""
