"""Preemption at a simulated worker: batch requests give way to an interactive one that has come."""

from __future__ import annotations

from typing import cast

from chiron.policy.preemption import PreemptionRule, RunningBatch, Victims
from chiron.sim.instance import SimInstance
from chiron.sim.ledger import Ledger


def make_room(
    instance: SimInstance, prompt_tokens: int, ledger: Ledger, rule: PreemptionRule, now: float
) -> list[int]:
    """Take running batch requests off an instance so that an interactive request gets a slot and KV blocks.

    Counts the interactive requests that wait in the engine already, each with a prompt like this one. Return
    those taken off; they are the caller's to queue again.
    """
    if not instance.running_batch:
        return []
    engine = instance.engine
    block_size = engine.profile.block_size
    blocks = (instance.waiting_interactive + 1) * -(-(prompt_tokens + 1) // block_size)
    running = instance.running_interactive + instance.running_batch
    slots = running + instance.waiting_interactive + 1 - engine.batch_size
    if slots <= 0 and blocks * block_size <= instance.kv_free_tokens:
        return []
    instance.settle(now)
    slots = engine.running + instance.waiting_interactive + 1 - engine.batch_size
    missing = blocks - engine.kv_free_tokens // block_size
    if slots <= 0 and missing <= 0:
        return []
    running_batch = [
        RunningBatch(
            request_id,
            ledger.deadline_s[request_id],
            computed,
            -(-computed // block_size),
            ledger.times_preempted.get(request_id, 0),
            emitted,
        )
        for request_id, computed, emitted in engine.decoding_progress(rule.min_progress_tokens)
        if ledger.is_batch[request_id]
    ]
    choice = rule.choose(running_batch, max(0, slots), max(0, missing))
    if not isinstance(choice, Victims):
        return []
    taken = []
    for request_id in cast("tuple[int, ...]", choice.request_ids):
        computed = instance.remove(request_id, now)
        if computed is not None:
            ledger.preemptions += 1
            ledger.times_preempted[request_id] = ledger.times_preempted.get(request_id, 0) + 1
            ledger.home[request_id] = (instance.instance_id, computed)
            taken.append(request_id)
    return taken
