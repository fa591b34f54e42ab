"""How many batch instances the deadlines need: the fewest that bring BBP to 0.

The rule is the paper's (arXiv 2501.08090, batch backpressure); the estimate behind it is reconstructed: work
ahead at a quantile against the tokens that spare and batch capacity make until a group is due.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chiron.policy.decisions import Alternative, GroupEstimate
from chiron.policy.fleet.backpressure import (
    BatchSupply,
    GroupWork,
    batch_backpressure,
    missing_batch_instances,
)
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.supply import Supply
from chiron.policy.fleet.weighed import fewer_for_deadlines, leave_to_spare
from chiron.policy.snapshots import ModelFleet
from chiron.policy.words import RequestClass, Role

_TAIL_SHARE = 0.05
_TAIL_OF_DEADLINE = 0.25
_PRESUMED_TOKENS_PER_SLOT_S = 10.0
_LEARNING_WEIGHT = 60.0
_LEARNING_LOADS = 6.0
_FAR_LOADS = 20.0
_GROUPS_TOLD = 8


@dataclass(frozen=True, slots=True)
class BatchNeed:
    """What the deadlines ask for."""

    missing: int
    """Batch instances to add."""
    deficit: float
    """Share of the work of the worst group that would be late, 0 to 1."""
    reason: str
    numbers: Mapping[str, float]
    weighed: tuple[Alternative, ...] = ()
    """What else than the missing ones."""
    groups: tuple[GroupEstimate, ...] = ()
    """When the first of the waiting groups will be done with present capacity."""


def assess_batch(
    model: ModelFleet, supply: Supply, state: ModelState, settings: ChironSettings, now_s: float
) -> BatchNeed:
    """Compare each group's work with what is made until it is due. O(groups)."""
    each = _tokens_per_s(state, supply.batch_slots_each)
    batch = batch_supply(model, supply, state, settings)
    groups = group_work(model, supply, state)
    bbp = batch_backpressure(groups, batch)
    fraction = missing_batch_instances(groups, batch, each, model.load_time_s)
    numbers = {
        "bbp": float(bbp),
        "groups": float(len(groups)),
        "backlog": float(sum(group.requests for group in model.backlog)),
        "batch_tokens_per_s": batch.rate,
        "batch_tokens_per_s_each": each,
        "batch_instances_missing": fraction,
        "mean_output_tokens": state.batch_lengths.mean,
    }
    if not groups:
        return BatchNeed(0, 0.0, "no batch request waits", numbers)
    told = _estimates(model, groups, batch)
    if not fraction:
        reason = "every group is done in time with present capacity"
        return BatchNeed(0, 0.0, reason, numbers, groups=told)
    deficit = max(
        1 - batch.tokens_by(group.due_in_s) / group.work_tokens for group in groups if group.work_tokens > 0
    )
    deficit = min(1.0, max(0.0, deficit))
    if batch.rate > 0 and fraction < settings.defer_below:
        reason = "a fraction of an instance is missing: spare capacity may do"
        return BatchNeed(0, deficit, reason, numbers, groups=told)
    soonest = min(group.due_in_s for group in groups)
    if (
        state.batch_lengths.weight < _LEARNING_WEIGHT
        # What has a place begins at once, though no report may have told of it yet.
        and (supply.running_batch or batch.rate > 0)
        and soonest > _FAR_LOADS * model.load_time_s
        and now_s - state.batch_began_s < _LEARNING_LOADS * model.load_time_s
    ):
        reason = "first requests tell how long the work is; deadlines are far"
        return BatchNeed(0, deficit, reason, numbers, groups=told)
    missing = math.ceil(fraction - 1e-9) if math.isfinite(fraction) else 1
    reason = f"{bbp} of {len(groups)} request groups would be late"
    weighed: tuple[Alternative, ...] = (fewer_for_deadlines(min(fraction, float(missing)), missing, bbp),)
    if missing == 1:
        weighed += (leave_to_spare(min(fraction, 1.0), settings.defer_below),)
    return BatchNeed(missing, deficit, reason, numbers, weighed, told)


def _estimates(
    model: ModelFleet, groups: Sequence[GroupWork], supply: BatchSupply
) -> tuple[GroupEstimate, ...]:
    """When the first groups will be done: once their tokens are made, and the longest requests have ended."""
    told = []
    for group, work in zip(model.backlog[:_GROUPS_TOLD], groups, strict=False):
        done_s = supply.time_for(work.work_tokens) + group.deadline_in_s - work.due_in_s
        told.append(GroupEstimate(group.deadline_in_s, group.requests, done_s))
    return tuple(told)


def batch_supply(
    model: ModelFleet, supply: Supply, state: ModelState, settings: ChironSettings
) -> BatchSupply:
    """What batch work gets: batch instances, and what interactive arrivals leave of mixed ones.

    Spare capacity is the lesser of spare slots and of the throughput that arrivals do not need. A batch
    instance that has just been made mixed gives batch work at most what it gave before.
    """
    each = _tokens_per_s(state, supply.slots_each)
    batch_each = _tokens_per_s(state, supply.batch_slots_each)
    made_mixed = supply.made_mixed
    number = len(supply.interactive) - made_mixed
    # A batch instance keeps its role here until its change has been decided.
    mixed = sum(instance.role is Role.MIXED for instance in supply.interactive)
    free = max(0.0, supply.slots - supply.demand)
    free_there = min(free, made_mixed * supply.batch_slots_each)
    spare = batch_each * free_there / supply.batch_slots_each + each * (free - free_there) / supply.slots_each
    more = each * len(supply.loading_interactive)
    rate = state.arrivals.rate(settings.confidence)
    if rate is not None and state.lengths_known:
        left = each * number + batch_each * made_mixed - rate.settled * state.interactive_lengths.mean
        more = max(0.0, left + more) - max(0.0, left)
        spare = min(spare, max(0.0, left))
    spare = min(spare, each * mixed + batch_each * made_mixed)
    later = [(instance.ready_in_s, batch_each) for instance in supply.loading_batch]
    if supply.loading_interactive and more > 0:
        later.append((max(instance.ready_in_s for instance in supply.loading_interactive), more))
    return BatchSupply(spare + batch_each * len(supply.batch), tuple(later))


def group_work(model: ModelFleet, supply: Supply, state: ModelState) -> list[GroupWork]:
    """Each group with the work up to its end and when that is due.

    Work starts with the rest of what runs (mean residual life of a length: half of mean × (1 + cv²)). Due is
    the deadline less the time that the longest of the last requests takes once it runs, which is bounded by a
    quarter of the time to the deadline. Of what is due soon the chosen quantile counts; of what is due in
    more than twenty load times the mean, because there is time to add what turns out to be missing.
    """
    lengths = state.batch_lengths
    running = supply.running_batch * lengths.mean * (1 + lengths.cv**2) / 2
    slots = max(1.0, supply.slots + supply.batch_slots)
    itl_s = state.curve.itl_s(supply.slots_each) or 1 / _PRESUMED_TOKENS_PER_SLOT_S
    groups = []
    ahead = 0
    for group in model.backlog:
        ahead += group.requests
        tail = lengths.tail(_TAIL_SHARE / max(1.0, min(float(ahead), slots)))
        if model.max_context_tokens:
            tail = min(tail, model.max_context_tokens)
        tail_s = min(tail * itl_s, _TAIL_OF_DEADLINE * max(0.0, group.deadline_in_s))
        mean, _, quantile = state.waits.work({RequestClass.BATCH: ahead}, running)
        due_s = group.deadline_in_s - tail_s
        groups.append(GroupWork(due_s, mean if due_s > _FAR_LOADS * model.load_time_s else quantile))
    return groups


def _tokens_per_s(state: ModelState, slots: float) -> float:
    """Of a full instance; presumed until one has been seen at work."""
    return state.curve.tokens_per_s(slots, reach=1.0) or slots * _PRESUMED_TOKENS_PER_SLOT_S
