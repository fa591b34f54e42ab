"""What a step, or a run of identical steps, did or will do."""

from dataclasses import dataclass
from typing import NamedTuple


class Admission(NamedTuple):
    """A request left the queue and took a slot."""

    request_id: int
    cached_tokens: int
    """Tokens that this admission found in the prefix cache and need not compute."""


class StepOutcome(NamedTuple):
    """Effects of the steps that began at `now`; tokens become visible at now + duration_s."""

    duration_s: float
    """Seconds that the steps take together."""
    steps: int
    """Engine steps taken, >= 1; more than 1 only for a run of identical decode steps."""
    prefill_tokens: int
    """Prompt tokens computed, prompts recomputed after a preemption included."""
    decode_tokens: int
    """Token positions computed for decoding requests, draft tokens included."""
    emitted_tokens: int
    """Output tokens emitted over all requests."""
    admitted: list[Admission]
    """In order of admission."""
    first_tokens: list[int]
    """Requests that emitted their first token in this engine."""
    finished: list[int]
    """Requests that emitted their last token; the engine has forgotten them."""
    preempted: list[int]
    """Requests put back to wait for lack of KV blocks; what they emitted is kept."""
    emissions: list[tuple[int, int]]
    """(request id, tokens) for each request that emitted; empty unless the engine reports emissions."""


@dataclass(frozen=True, slots=True)
class EngineTotals:
    """Counters since the engine was made; they only grow."""

    steps: int
    """Steps taken, each step of a decode run counted."""
    prefill_tokens: int
    """Prompt tokens computed, recomputation after preemption included."""
    emitted_tokens: int
    """Output tokens emitted."""
    draft_tokens: int
    """Tokens drafted in speculative decoding, each of them computed; 0 without."""
    accepted_tokens: int
    """Those of them that were accepted, the ones beyond the end of an answer included."""
    cached_tokens: int
    """Tokens that the prefix cache supplied at admissions."""
    finished: int
    """Requests that emitted all their tokens."""
    preemptions: int
    """Times that a running request was put back to wait, forced ones included."""


class DecodeRun(NamedTuple):
    """Identical decode steps ahead."""

    steps: int
    """Steps up to the first in which a request finishes, or the last before KV blocks run out."""
    duration_s: float
    """Seconds that they take together."""
