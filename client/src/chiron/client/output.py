"""What the client hands back: chunks of a stream, whole completions, usage and timing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    """End of sequence, a stop string or a stop token."""
    LENGTH = "length"
    """`max_tokens` or the end of the context."""
    ABORT = "abort"
    """The engine gave it up."""


@dataclass(frozen=True, slots=True)
class TokenAlternative:
    """A token that could have been sampled."""

    token_id: int
    logprob: float
    """Natural logarithm of its probability."""
    text: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The sampled token's probability and its alternatives'."""

    logprob: float
    """Natural logarithm of the sampled token's probability."""
    rank: int
    """Rank of the sampled token, from 1."""
    alternatives: tuple[TokenAlternative, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a whole request, over all its choices."""

    prompt_tokens: int
    cached_prompt_tokens: int
    """Prompt tokens whose KV cache was reused."""
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a whole request in milliseconds: as its worker saw them, and as this client did."""

    ttft_ms: float
    """From the first door to the first token."""
    queue_ms: float
    """Waiting in the engine's queue."""
    itl_mean_ms: float
    """Mean time between tokens at the engine; 0 with one token."""
    itl_max_ms: float
    """Longest time between two tokens at the engine."""
    total_ms: float
    """From arrival at the worker to the last token."""
    preemptions: int
    """How often the engine preempted the request."""
    instance_id: str
    """The instance that answered."""
    client_ttft_ms: float
    """From the call, earlier attempts included, to the first token's arrival here; 0 without a token."""
    client_itl_mean_ms: float
    """Mean time between a choice's tokens as they arrived here; 0 where no choice has two."""
    client_itl_max_ms: float
    """Longest wait here between two deliveries of one choice; tokens that travel together count as one."""
    client_total_ms: float
    """From the call to the stream's last message."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a request waits for in a router, because nothing has a place for it yet."""

    text: str
    """One line for people."""
    position: int
    """Its place among those of its model and class that wait in that router, from 1."""
    waiting: int
    """How many these are."""
    waited_ms: float
    """Time since it came to that router, in milliseconds."""
    instance_id: str
    """Where no instance serves: the one that is expected to be ready first; empty: none is on its way."""
    loading_ms: float
    """How long that instance has been on its way, in milliseconds."""
    ready_in_ms: float | None
    """Until it is expected to be ready, in milliseconds; 0: it is late. None: not known."""


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """What one tool call gained."""

    index: int
    """Place of the call in the choice's output, from 0."""
    id: str
    """Set on a call's first piece, with its name."""
    name: str
    arguments: str
    """Piece of its arguments: JSON text as the model wrote it."""


@dataclass(frozen=True, slots=True)
class ParsedPiece:
    """What a chunk's text says and calls."""

    content: str
    """Text outside of calls and of reasoning."""
    tool_calls: tuple[ToolCallPiece, ...]
    reasoning: str
    error: str
    """Why the parser could not go on: all later text is content. Empty: it can."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model wrote."""

    id: str
    name: str
    """As the model wrote it: not necessarily that of a tool."""
    arguments: str
    """JSON text as the model wrote it: it may be invalid, and cut off where the output is."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a choice says and calls in all."""

    content: str
    """Text outside of calls and of reasoning; all of the text where the parser failed."""
    tool_calls: tuple[ToolCall, ...]
    reasoning: str
    error: str
    """Why the parser failed; empty: it did not."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one choice of a stream gained."""

    text: str
    """Text that these tokens released; may be empty, or hold text of earlier tokens."""
    token_ids: tuple[int, ...]
    choice: int
    """Index of the choice, 0 to n - 1."""
    first_token_index: int
    """Index of the first of these tokens within the choice's output."""
    text_ends: tuple[int, ...]
    """For each token, the length in code points of the choice's text once that token is out."""
    logprobs: tuple[TokenLogprobs, ...]
    """One for each token, where asked for."""
    finish_reason: FinishReason | None
    """Set on a choice's last chunk."""
    stop_match: str
    """The stop string or stop token's text that ended the choice."""
    usage: Usage | None
    """Set on the stream's last chunk."""
    timing: Timing | None
    """Set on the stream's last chunk."""
    request_id: str
    attempts: int
    """How many attempts it took to get here; 1: the first one worked."""
    parsed: ParsedPiece | None = None
    """What the text says and calls; only where `tool_choice` has calls parsed."""
    instance_id: str = ""
    """The instance that this comes from; "": it came through the router, which tells in the last `timing`."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One generated continuation, whole or as far as it came."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    """One for each token, where asked for."""
    finish_reason: FinishReason | None
    """None: it was interrupted."""
    stop_match: str
    """The stop string or stop token's text that ended it."""
    parsed: Parsed | None = None
    """What the text says and calls; only where `tool_choice` has calls parsed."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    request_id: str
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    timing: Timing
    attempts: int
    """How many attempts it took; 1: the first one worked."""

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the first choice."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        reason = self.choices[0].finish_reason
        assert reason is not None, "a completion's choices are finished"
        return reason
