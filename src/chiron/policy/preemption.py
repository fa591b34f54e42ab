"""Which batch requests give way when interactive work needs their slots and their KV blocks.

The paper (arXiv 2501.08090) has interactive requests evict batch requests from mixed instances; the choice
below (latest deadline, then least progress lost, minimum progress, re-preemption bound) is reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

HAND_BACK_S = 5.0
"""Time after which a worker gives a batch request back that waits for a slot beside interactive work, in
seconds, unless it is set to another."""


@dataclass(frozen=True, slots=True)
class RunningBatch:
    """One batch request in an engine's batch. Freshness: exact, from the engine that chooses."""

    request_id: Hashable
    deadline_s: float
    """Absolute, in seconds, on any clock common to all candidates."""
    computed_tokens: int
    """Prompt and output tokens in its KV cache: what a resumption computes again."""
    kv_blocks: int
    """Blocks that its preemption frees."""
    preemptions: int = 0
    """How often it has been preempted so far."""
    progress_tokens: int = 0
    """Output tokens since it last got its slot."""
    slots: int = 1
    """Slots that its preemption frees: one for each of its choices."""


@dataclass(frozen=True, slots=True)
class Victims:
    """Preempt these."""

    request_ids: tuple[Hashable, ...]
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoVictims:
    """Preempting all that may be preempted would not be enough, so nobody is."""

    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PreemptionRule:
    """Whom to preempt, and whom to spare."""

    max_preemptions: int = 3
    """A request that has been preempted this often is spared, so that it ends at last."""
    min_progress_tokens: int = 16
    """A request that has made fewer output tokens since it got its slot is spared: no slot is passed on
    before it has served."""
    deadline_resolution_s: float = 60.0
    """Deadlines within the same span of this many seconds count as equal; the least progress lost decides."""

    def __post_init__(self) -> None:
        if self.max_preemptions < 0:
            raise ValueError(f"max_preemptions must not be negative, got {self.max_preemptions}")
        if self.min_progress_tokens < 0:
            raise ValueError(f"min_progress_tokens must not be negative, got {self.min_progress_tokens}")
        if not self.deadline_resolution_s > 0:
            raise ValueError(f"deadline_resolution_s must be positive, got {self.deadline_resolution_s}")

    def choose(self, running: Sequence[RunningBatch], slots: int, kv_blocks: int) -> Victims | NoVictims:
        """Choose as many as free `slots` slots and `kv_blocks` blocks, and none that is not needed.

        Latest deadline first, then the fewest computed tokens. Those that turn out superfluous once later
        ones are chosen (too few blocks to matter) are let off. O(n log n) in the running requests.
        """
        eligible = [
            request
            for request in running
            if request.preemptions < self.max_preemptions
            and request.progress_tokens >= self.min_progress_tokens
        ]
        eligible.sort(key=self._order)
        chosen: list[RunningBatch] = []
        freed = blocks = 0
        for request in eligible:
            if freed >= slots and blocks >= kv_blocks:
                break
            chosen.append(request)
            freed += request.slots
            blocks += request.kv_blocks
        numbers = {
            "slots_needed": slots,
            "kv_blocks_needed": kv_blocks,
            "running": len(running),
            "eligible": len(eligible),
        }
        if freed < slots or blocks < kv_blocks:
            numbers |= {"slots_freed": freed, "kv_blocks_freed": blocks}
            return NoVictims("too few batch requests may be preempted", numbers)
        for request in tuple(chosen):
            if freed - request.slots >= slots and blocks - request.kv_blocks >= kv_blocks:
                chosen.remove(request)
                freed -= request.slots
                blocks -= request.kv_blocks
        numbers |= {
            "slots_freed": freed,
            "kv_blocks_freed": blocks,
            "tokens_lost": sum(request.computed_tokens for request in chosen),
        }
        return Victims(
            tuple(request.request_id for request in chosen),
            "latest deadline, then least progress lost",
            numbers,
        )

    def _order(self, request: RunningBatch) -> tuple[float, int, str]:
        span = request.deadline_s
        if math.isfinite(span):
            span = math.floor(span / self.deadline_resolution_s)
        return -span, request.computed_tokens, str(request.request_id)
