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
_RESERVE_LOADS = 2.0
_RESERVE_OF_DEADLINE = 0.5
_GRACE_OF_RESERVE = 0.5
_PRESUMED_TOKENS_PER_SLOT_S = 10.0
_LEARNING_LOADS = 6.0
NEAR_LOADS = 20.0
"""Load times before a deadline from which on it is near."""
_LAST_LOADS = 4.0
_FULL = 0.95
_SLOWED = 2.0
_OVERFULL = 1.05
"""Interactive requests that come faster by so much than full instances serve them may wait instead."""
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
    groups = group_work(model, supply, state, settings)
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
    soonest = min(group.due_in_s for group in groups)
    defer = _deferred(soonest, model.load_time_s, settings)
    # Slots that are all taken now may be spared again, as long as there is time.
    later = soonest > NEAR_LOADS * model.load_time_s and _takes_batch(supply)
    graced = all(batch.time_for(each.work_tokens) <= each.due_in_s + each.grace_s for each in groups)
    if graced or ((batch.rate > 0 or later) and fraction < defer):
        reason = "a fraction of an instance is missing: spare capacity may do"
        return BatchNeed(0, deficit, reason, numbers, groups=told)
    learning = (
        # What has a place begins at once, though no report may have told of it yet.
        (supply.running_batch or batch.rate > 0)
        and model.backlog[0].deadline_in_s > NEAR_LOADS * model.load_time_s
        and now_s - state.batch_began_s < _LEARNING_LOADS * model.load_time_s
    )
    sure = _surely_missing(model, state, batch, each) if learning else 0
    if learning and not sure:
        reason = "first requests tell how long the work is; deadlines are far"
        return BatchNeed(0, deficit, reason, numbers, groups=told)
    missing = max(1, math.ceil(fraction - defer)) if math.isfinite(fraction) else 1
    missing = min(missing, _of_use(model, supply, state))
    if learning:
        missing = min(missing, sure)
    reason = f"{bbp} of {len(groups)} request groups would be late"
    weighed: tuple[Alternative, ...] = (fewer_for_deadlines(min(fraction, float(missing)), missing, bbp),)
    if missing == 1:
        weighed += (leave_to_spare(min(fraction, 1.0), defer),)
    return BatchNeed(missing, deficit, reason, numbers, weighed, told)


def _estimates(
    model: ModelFleet, groups: Sequence[GroupWork], supply: BatchSupply
) -> tuple[GroupEstimate, ...]:
    """When the first groups will be done: once their tokens are made, and the longest requests have ended."""
    told = []
    for group, work in zip(model.backlog[:_GROUPS_TOLD], groups, strict=False):
        done_s = supply.time_for(work.work_tokens) + work.last_s
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


def group_work(
    model: ModelFleet,
    supply: Supply,
    state: ModelState,
    settings: ChironSettings,
    *,
    cautious: bool = False,
) -> list[GroupWork]:
    """Each group with the work up to its end and when that is due.

    Work starts with the rest of what runs (mean residual life of a length: half of mean × (1 + cv²)). Due is
    the deadline less a reserve: what the longest of the last requests takes once the others have ended, and
    two load times in which what turns out to be missing can be added. It is at most half of the time to the
    deadline, unless the caller is cautious. Of what is due soon, and for the cautious, the chosen quantile
    counts; of what is due in more than twenty load times the mean, because there is time to add what turns
    out to be missing.
    """
    lengths = state.batch_lengths
    running = supply.running_batch * lengths.mean * (1 + lengths.cv**2) / 2
    slots = max(1.0, supply.slots + supply.batch_slots)
    full_s = state.curve.itl_s(supply.slots_each) or 1 / _PRESUMED_TOKENS_PER_SLOT_S
    last_s = _itl_of_the_last_s(model, supply, state, settings) or full_s
    groups = []
    ahead = 0
    for group in model.backlog:
        ahead += group.requests
        tail = lengths.tail(_TAIL_SHARE / max(1.0, min(float(ahead), slots)))
        if model.max_context_tokens:
            tail = min(tail, model.max_context_tokens)
        mean, _, quantile = state.waits.work({RequestClass.BATCH: ahead}, running)
        # An instance that turns out to be missing takes a load time to come.
        longest_s = lengths.mean * full_s + tail * last_s
        reserve_s = longest_s + _RESERVE_LOADS * model.load_time_s
        if not cautious:
            reserve_s = min(reserve_s, _RESERVE_OF_DEADLINE * max(0.0, group.deadline_in_s))
        due_s = group.deadline_in_s - reserve_s
        # An instance that starts for less makes hardly anything by then.
        grace_s = min(model.load_time_s, _GRACE_OF_RESERVE * reserve_s)
        certain = cautious or due_s <= NEAR_LOADS * model.load_time_s
        groups.append(GroupWork(due_s, quantile if certain else mean, longest_s, grace_s))
    return groups


def _surely_missing(model: ModelFleet, state: ModelState, batch: BatchSupply, each: float) -> int:
    """Whole batch instances that are missing even if requests are half as long as they seem."""
    groups, ahead = [], 0
    for group in model.backlog:
        ahead += group.requests
        groups.append(GroupWork(group.deadline_in_s, ahead * state.batch_lengths.mean / 2))
    fraction = missing_batch_instances(groups, batch, each, model.load_time_s)
    return math.floor(fraction) if math.isfinite(fraction) else 0


def _of_use(model: ModelFleet, supply: Supply, state: ModelState) -> int:
    """Batch instances that what waits can use: those that run all of it at once.

    What runs elsewhere does not move there. Where full instances are too slow for the earliest deadline,
    emptier ones are of use too, up to one for each request.
    """
    waiting = sum(group.requests for group in model.backlog)
    slots = max(1.0, supply.batch_slots_each)
    full_s = state.curve.itl_s(slots) or 1 / _PRESUMED_TOKENS_PER_SLOT_S
    soonest_s = min((group.deadline_in_s for group in model.backlog), default=math.inf)
    if state.batch_lengths.mean * full_s > soonest_s - model.load_time_s:
        return max(1, waiting)
    return max(1, math.ceil(waiting / slots))


def _takes_batch(supply: Supply) -> bool:
    """Tell whether batch requests have a place to go to, though it may be full at times."""
    instances = (*supply.batch, *supply.loading_batch, *supply.interactive, *supply.loading_interactive)
    return any(instance.role is not Role.INTERACTIVE for instance in instances)


def _itl_of_the_last_s(
    model: ModelFleet, supply: Supply, state: ModelState, settings: ChironSettings
) -> float:
    """Time between the tokens of the last batch requests: beside interactive ones alone; 0: unknown.

    These keep no more instances than they need: where that is nearly a whole number, all of them stay full.
    """
    curve, running = state.curve, 1.0
    rate = state.arrivals.rate(settings.confidence)
    if supply.interactive and rate is not None and state.lengths_known:
        needed = rate.settled * state.interactive_lengths.mean
        each = _tokens_per_s(state, supply.slots_each)
        number = max(1, min(math.ceil(needed / (_OVERFULL * each)), len(supply.interactive)))
        running = min(curve.running_at(needed / number), supply.slots_each)
        if needed / number >= _FULL * each:
            # Engines that cannot keep up take more requests in, as far as the ITL SLO lets them.
            full_s = curve.itl_s(supply.slots_each)
            return max(full_s, min(_SLOWED * full_s, model.itl_slo_s))
    return curve.itl_s(running)


def _deferred(due_in_s: float, load_s: float, settings: ChironSettings) -> float:
    """The share of one instance that may be missing: the more time is left to add it, the more."""
    if due_in_s <= 0:
        return settings.defer_below
    return max(settings.defer_below, settings.defer_far * (1 - _LAST_LOADS * load_s / due_in_s))


def _tokens_per_s(state: ModelState, slots: float) -> float:
    """Of a full instance; presumed until one has been seen at work."""
    return state.curve.tokens_per_s(slots, reach=1.0) or slots * _PRESUMED_TOKENS_PER_SLOT_S
