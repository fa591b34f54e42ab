"""The interface between a worker and an engine.

One suite (tests/conformance/engine_suite.py) states what every engine must do; docs/writing-an-engine.md
shows a third one. Token counts are in tokens, times in seconds of the monotonic clock.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chiron.v1 import inference_pb2 as pb
from services.worker.engines.calls import Calls

OnGone = Callable[[Sequence[Hashable] | None], None]
"""Told of KV blocks, by names that are the engine's own; None: all of them."""


class EngineError(Exception):
    """Base of what engines raise on purpose."""


class EngineLoadError(EngineError):
    """The engine could not start; the text says why in one line."""


class EngineDeadError(EngineError):
    """The engine is gone (its process died); nothing that ran on it can continue here."""


class InvalidRequestError(EngineError):
    """The engine cannot take this request as it is.

    Attributes:
        field: path of the field in GenerateRequest, e.g. `sampling.structured_output`.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class EngineBusyError(EngineError):
    """The call needs an idle engine (sleep) or an awake one (generate) and found otherwise."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What a worker hands to an engine at start."""

    instance_id: str
    """Id of the instance; names logs and engine processes."""
    model: str
    """Name of the model as clients know it."""
    weights: str
    """Path of the weights; may be empty for engines that need none."""
    revision: str
    """Revision of the weights; may be empty."""
    gpus: int
    """GPUs that the engine may use; they are the only ones visible to the process."""
    max_batch_size: int
    """Ceiling of the batch size, in requests; the engine allocates for it."""
    batch_size: int
    """Batch size to start with, in requests; 1 to max_batch_size."""
    step_token_budget: int
    """Step-token budget to start with, in tokens; 0: the engine's default."""
    chat_template: str
    """Path of a Jinja template or its text; empty: the tokenizer's own."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters: name → path."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments by the engine's own names; unknown ones are an EngineLoadError that names them."""
    tool_parser: str = ""
    """Name of the engine's parser for tool calls; empty: none. An unknown one is an EngineLoadError that
    names those there are."""
    reasoning_parser: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is fixed once an engine has started."""

    max_context_tokens: int
    """Most prompt plus output tokens of one request."""
    kv_capacity_tokens: int
    """Size of the KV cache."""
    max_batch_size: int
    max_step_token_budget: int
    vocabulary_size: int
    """Token ids are below this."""
    kv_block_size: int = 1
    """Tokens of one block, of which a request holds a whole number; 1: the KV cache is not kept in blocks."""


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One request, checked by the worker, its prompt tokenised by `Engine.tokenize`."""

    request_id: str
    prompt_token_ids: Sequence[int]
    sampling: pb.SamplingParams
    """As the client sent it, with max_tokens set. All of it counts from the first token, delivered or not."""
    delivered_token_ids: Sequence[int] = ()
    """Output tokens that another engine has delivered: the output goes on after them. Only where
    `Engine.resume_obstacle` finds none."""
    delivered_text_length: int = 0
    """Code points of text delivered with them: the first text is what follows."""
    priority: int = 0
    """A lower value is more urgent; class and client priority are folded in."""
    adapter: str = ""
    cache_salt: str = ""
    """Requests of another salt must not find this one's prompt in the cache: the tenant."""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """W3C trace context that the engine's own span continues."""


@dataclass(slots=True)
class ChoiceDelta:
    """What one choice gained in one engine output."""

    choice: int
    token_ids: Sequence[int]
    text: str
    text_ends: Sequence[int]
    """For each token, the code points of the choice's text out so far, once that token is out."""
    logprobs: Sequence[pb.TokenLogprobs] = ()
    finish_reason: pb.FinishReason.ValueType = pb.FINISH_REASON_UNSPECIFIED
    stop_match: str = ""


@dataclass(slots=True)
class EngineOutput:
    """One step's yield for one request."""

    deltas: Sequence[ChoiceDelta]
    time: float
    """Monotonic time at which the engine produced it, before any coalescing."""
    cached_prompt_tokens: int = 0
    """Prompt tokens whose KV cache was reused; meaningful from the first output on."""
    preemptions: int = 0
    """How often the request has been preempted so far."""
    queue_s: float = 0.0
    """Seconds in the engine's queue before the first step that ran the request."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters and gauges of an engine; counters only grow."""

    running: int
    """Requests in the batch now."""
    waiting: int
    """Requests in the engine's queue now."""
    kv_usage: float
    """Share of the KV cache in use, 0 to 1."""
    batch_size: int
    step_token_budget: int
    steps: int
    """Engine steps since the start."""
    output_tokens: int
    prompt_tokens: int
    """Prompt tokens computed or found in the cache."""
    cached_prompt_tokens: int
    preemptions: int
    draft_tokens: int = 0
    """Tokens drafted in speculative decoding since the start, each of which a step computed."""
    accepted_tokens: int = 0
    """Those of them that were accepted: they are among the output tokens."""


class Engine(abc.ABC):
    """An engine that has started. All methods are called from one asyncio loop."""

    @classmethod
    @abc.abstractmethod
    async def start(cls, config: EngineConfig) -> Engine:
        """Loads the model and returns when it can serve. Raises EngineLoadError."""

    @property
    @abc.abstractmethod
    def info(self) -> EngineInfo:
        """What is fixed since the start."""

    @abc.abstractmethod
    def tokenize(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Turns the request's input (text, token ids or chat messages) into token ids.

        Raises InvalidRequestError for an empty prompt, ids outside the vocabulary, a chat without a template.
        A long request is read in a thread beside the loop's, one at a time; for the others it must not block
        for longer than a few milliseconds.
        """

    @abc.abstractmethod
    def generate(self, request: EngineRequest) -> AsyncIterator[EngineOutput]:
        """Streams the output; every choice ends with a finish_reason.

        Closing the iterator, or cancelling its consumer, frees the request's slot. A slow consumer delays
        nobody: outputs merge while they wait. Raises InvalidRequestError before the first output, and
        EngineDeadError at once when the engine dies.

        A request with delivered tokens yields what an undisturbed one would have yielded after them, text
        held back for a stop string or half a character included. If they end the output already, its only
        delta has no token and the finish reason.
        """

    def calls(self, request: pb.GenerateRequest) -> Calls:
        """How the calls of a chat come about whose tool_choice has them parsed.

        Asked before `tokenize`, under its conditions. Raises InvalidRequestError where the engine has no
        parser, or cannot do with these tools what is asked.
        """
        raise InvalidRequestError("chat.tools", "this model's engine has no parser for tool calls")

    def delivered(self, request: EngineRequest) -> ChoiceDelta:
        """What the delivered tokens of a resumed request have brought, as one delta.

        Raises InvalidRequestError where no undisturbed request delivers these tokens and this much text.
        """
        raise EngineError("this engine cannot continue what another one began")

    def follow_cache(self, on_gone: OnGone) -> int:
        """From now on `on_gone` is told which KV blocks have left the prefix cache; None: all have.

        Returns the length of a block in tokens; 0: this engine does not tell of its cache.
        """
        return 0

    def prompt_blocks(self, request: EngineRequest) -> Sequence[Hashable]:
        """The full KV blocks of a request that has its first output, as `follow_cache` names them."""
        return ()

    def resume_obstacle(self, sampling: pb.SamplingParams) -> str:
        """Why delivered tokens cannot be continued faithfully under these parameters; empty: they can."""
        return "its engine cannot continue what another one began"

    @abc.abstractmethod
    async def abort(self, request_id: str) -> None:
        """Ends a request with FINISH_REASON_ABORT; an unknown id does nothing."""

    @abc.abstractmethod
    async def set_limits(self, *, batch_size: int = 0, step_token_budget: int = 0) -> None:
        """Sets what is not 0, from the next step on. Lowering drains; nothing is evicted.

        Raises ValueError outside 1 to info.max_batch_size (max_step_token_budget).
        """

    @abc.abstractmethod
    async def preempt(self, request_ids: Sequence[str]) -> Sequence[str]:
        """Puts running requests back into the queue; they resume later with their tokens kept.

        Returns those that were running, once `stats` counts them as waiting. Their slots are free from the
        next step on, for whatever waits by then: who wants one for another request submits that first. Steps
        that are under way still yield what they compute, in at most two outputs; then nothing comes before
        the request has a slot again.
        """

    @abc.abstractmethod
    async def sleep(self, level: int) -> None:
        """Takes the weights off the GPU: 1 keeps them in host memory, 2 drops them.

        Raises EngineBusyError while requests run or wait.
        """

    @abc.abstractmethod
    async def wake(self) -> None:
        """Undoes sleep; returns when the engine can serve."""

    @abc.abstractmethod
    def stats(self) -> EngineStats:
        """The newest figures that the engine has published; cheap."""

    @abc.abstractmethod
    async def wait_dead(self) -> str:
        """Returns the reason as soon as the engine has died; never while it lives."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stops the engine and frees everything it holds. May be called twice."""
