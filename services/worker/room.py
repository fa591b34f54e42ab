"""What an interactive request lacks in the engine, and which batch requests hold it. Pure.

The rule that chooses among them is `chiron.policy.preemption.PreemptionRule`. An engine counts without
classes and publishes with each step only, so that slots are counted here, from what has been asked of it and
what it has yielded: who has output since it got its slot has it still, and batch requests that wait have the
slots that interactive ones leave. Times are monotonic, in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from chiron.policy.preemption import RunningBatch
from services.worker.engines.base import EngineInfo, EngineStats
from services.worker.live import LiveRequest, LiveRequests

STEPS_AHEAD = 2
"""Steps for which those who run are left the KV blocks that they will take: what comes runs in the next."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What batch work has to free for an interactive request, and for those that wait before it."""

    slots: int
    kv_blocks: int

    def __bool__(self) -> bool:
        return self.slots > 0 or self.kv_blocks > 0


NOTHING = Missing(0, 0)


def plenty(live: LiveRequests, stats: EngineStats, info: EngineInfo, pending_blocks: int = 0) -> bool:
    """Whether nobody can lack anything, by bounds that cost O(1).

    Args:
        live: the one that has just come included.
        stats: of the engine.
        info: of the engine.
        pending_blocks: those that are being freed and that `stats` does not have.
    """
    if not live.slots[True]:
        return True
    if sum(live.slots) > stats.batch_size:
        return False
    return _most_blocks(live, info) <= free_blocks(stats, info) + pending_blocks


def _most_blocks(live: LiveRequests, info: EngineInfo) -> int:
    """A bound of what is wanted: a block for the rest of each prompt, and one that each may take soon."""
    return live.fresh_tokens // info.kv_block_size + 2 * sum(live.slots)


def free_blocks(stats: EngineStats, info: EngineInfo) -> int:
    """Free blocks of the KV cache by the engine's figures."""
    return int(info.kv_capacity_tokens * (1 - stats.kv_usage) + 0.5) // info.kv_block_size


def missing(
    live: LiveRequests, request: LiveRequest, stats: EngineStats, info: EngineInfo, pending_blocks: int = 0
) -> Missing:
    """What an interactive request, and those that came before it and wait, lack. O(n) in the live requests.

    Args:
        live: with the request in it.
        request: has just come.
        stats: of the engine.
        info: of the engine.
        pending_blocks: those that are being freed and that `stats` does not have.
    """
    interactive, decoding, queued, soon = 0, 0, 0, 0
    fresh: list[LiveRequest] = []
    came = False
    size = info.kv_block_size
    free = free_blocks(stats, info) + pending_blocks
    scarce = _most_blocks(live, info) > free
    for one in live:
        if one.done:
            continue
        runs = one.has_output and one.preempted is None
        if scarce and runs and _last_block_left(one, size) < STEPS_AHEAD:
            soon += one.slots
        if one.batch:
            if runs:
                decoding += one.slots
            elif one.preempted is None or one.preempted.by is not request:
                queued += one.slots
        elif not came:
            # Whoever comes later looks after itself.
            interactive += one.slots
            if not one.has_output:
                fresh.append(one)
            came = one is request
    if not decoding:
        return NOTHING
    batch_size = stats.batch_size
    running = decoding + min(queued, max(0, batch_size - (interactive - request.slots) - decoding))
    slots = interactive + running - batch_size
    if not scarce:
        return Missing(max(0, slots), 0)
    unseen = max(0, sum(live.slots) - stats.running - stats.waiting)
    waits = max(1, stats.waiting + unseen - queued)
    blocks = sum(one.slots * _blocks(one.prompt_tokens + 1, size) for one in fresh[-waits:])
    return Missing(max(0, slots), max(0, blocks + soon - free))


def candidates(live: Iterable[LiveRequest], info: EngineInfo) -> list[RunningBatch]:
    """The batch requests that hold slots, as the rule wants them."""
    return [
        RunningBatch(
            request_id=one.request_id,
            deadline_s=one.deadline,
            computed_tokens=one.pace.computed_tokens,
            kv_blocks=_blocks(one.pace.computed_tokens, info.kv_block_size),
            preemptions=one.pace.preemptions,
            progress_tokens=one.pace.tokens - one.pace.slot_tokens,
            slots=one.slots,
        )
        for one in live
        if one.batch and one.decoding and one.cut is None
    ]


def _blocks(tokens: int, size: int) -> int:
    return -(-tokens // size)


def _last_block_left(request: LiveRequest, size: int) -> int:
    """Tokens for which the last block of a running request has room."""
    return -request.pace.computed_tokens % size
