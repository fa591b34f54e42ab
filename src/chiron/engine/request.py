"""What a caller hands to the engine model, and what it can ask about it later."""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum

from chiron.engine.errors import InvalidRequestError


class RequestPhase(IntEnum):
    """Where a request stands in the engine."""

    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    ENDED = 3


@dataclass(slots=True)
class EngineRequest:
    """One request. Raises InvalidRequestError naming the field when a value is out of range.

    Nobody changes it once made; it is not frozen because that makes it three times as slow to make, and a
    simulator makes millions.
    """

    request_id: int
    """Handle chosen by the caller; unique among the requests that wait or run."""
    prompt_tokens: int
    """Length of the prompt in tokens, >= 1."""
    output_tokens: int
    """Tokens of output in all, >= 1: the lesser of max_tokens and the position of the end of sequence.
    Hidden from schedulers in reality; the model needs it to know when to finish."""
    priority: int = 0
    """Lower is more urgent."""
    prefix_hashes: tuple[Hashable, ...] = ()
    """Chained hash of each full block of the prompt, resumed tokens included, from the first; () when none
    is to be cached. Equal hashes mean equal tokens up to and including that block."""
    resumed_tokens: int = 0
    """Part of output_tokens that an earlier engine delivered: computed like prompt, not emitted again."""
    restored_tokens: int = 0
    """Leading prompt and resumed tokens whose keys and values the caller has copied back: at the first
    admission they take KV blocks and are not computed. The last token is always computed."""
    goes_on: bool = False
    """It has run elsewhere up to now, and waits here before all others of its priority."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise InvalidRequestError("prompt_tokens", f"must be at least 1, got {self.prompt_tokens}")
        if self.output_tokens < 1:
            raise InvalidRequestError("output_tokens", f"must be at least 1, got {self.output_tokens}")
        if not 0 <= self.resumed_tokens < self.output_tokens:
            raise InvalidRequestError(
                "resumed_tokens",
                f"must be from 0 to output_tokens - 1 = {self.output_tokens - 1}, got {self.resumed_tokens}",
            )
        if not 0 <= self.restored_tokens < self.prompt_tokens + self.resumed_tokens:
            raise InvalidRequestError(
                "restored_tokens",
                f"must be from 0 to {self.prompt_tokens + self.resumed_tokens - 1}, "
                f"got {self.restored_tokens}",
            )


@dataclass(frozen=True, slots=True)
class RequestProgress:
    """How far a request has come, as of the end of the last step."""

    request_id: int
    phase: RequestPhase
    priority: int
    emitted_tokens: int
    """Output tokens emitted by this engine; resumed tokens are not among them."""
    remaining_tokens: int
    """Output tokens still to emit."""
    computed_tokens: int
    """Tokens whose keys and values are in the KV cache; 0 while waiting."""
    cached_tokens: int
    """Prompt tokens that the prefix cache supplied at the first admission."""
    preemptions: int
    """Times that the request was put back to wait."""
