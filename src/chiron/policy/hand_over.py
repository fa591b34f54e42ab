"""Which running streams of an instance that is to end go on elsewhere, and how fast (reconstructed).

An instance that drains holds its GPUs until its longest stream has ended, with ever fewer beside it. A stream
can go on at another instance of the same weights, at the price of a prefill of its prompt and what it has
delivered. Two decisions, each where its facts are: the controller knows how much room the others have and
says how fast an instance may hand over (`grants`); the instance knows its streams and says which go
(`choose`). Where either finds nothing, the drain serves to the end: nothing is aborted.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from chiron.policy.snapshots import FleetInstance, ModelFleet
from chiron.policy.words import Phase, Role

INTERVAL_S = 0.25
"""From one choice of an instance to the next: so that those that take over are not given all at once."""
_LEAST_TOKENS = 1.0
_PRESUMED_STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class HandOverRule:
    """What bounds hand-over. ValueError names a field that is out of range. All values are ours."""

    begin_below: float = 0.5
    """Share of an instance's slots in use from which on it hands over. Until then nothing is lost by waiting:
    full engines do most with their time, and what ends by itself need not be computed anew."""
    fill: float = 0.95
    """Share of the slots, and of the KV cache, of those that take over that may be in use."""
    spread_s: float = 2.0
    """Time in which the free slots are given away: a report may be so old that they are taken twice."""
    prefill_share: float = 0.5
    """Share of what fits into the steps of those that take over beside their decodes: arrivals need some."""
    itl_share: float = 0.8
    """Share of the ITL SLO that a stream's mean ITL may reach by the move."""
    overhead_s: float = 0.1
    """Time for which a stream stops beside its prefill: the end here, the placement and the way there."""
    longest_gap_s: float = 3.0
    """Longest time without a token that may be expected of a move."""
    again_s: float = 10.0
    """Least time between two moves of one stream."""

    def __post_init__(self) -> None:
        for name in ("begin_below", "fill", "prefill_share", "itl_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not self.spread_s > 0:
            raise ValueError(f"spread_s must be positive, got {self.spread_s}")
        for name in ("overhead_s", "longest_gap_s", "again_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Grant:
    """How fast one instance may hand over, until it is told otherwise."""

    interactive_per_s: float = 0.0
    """Interactive streams per second."""
    batch_per_s: float = 0.0
    """Batch streams per second."""
    tokens_per_s: float = 0.0
    """Prompt and delivered tokens of them per second, which the others compute anew."""
    prefill_tokens_per_s: float = 0.0
    """At which one of the others takes in what comes."""

    def __bool__(self) -> bool:
        return self.tokens_per_s > 0 and (self.interactive_per_s > 0 or self.batch_per_s > 0)


@dataclass(frozen=True, slots=True)
class RunningStream:
    """A stream that decodes, as its own instance knows it. Freshness: now."""

    request_id: object
    batch: bool
    """Class: batch, else interactive."""
    prompt_tokens: int
    delivered_tokens: int
    """Output tokens so far, those of earlier instances included."""
    streaming_s: float
    """Since its first token."""
    itl_slo_s: float
    """On its mean ITL; NEVER_S: none."""
    resumable: bool = True
    """Another engine can go on with it as it began."""
    moved_s: float = math.inf
    """Since it was handed over the last time; inf: never."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Streams that go on elsewhere."""

    request_ids: tuple[object, ...]
    tokens: int
    """That the others compute anew."""
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def grants(model: ModelFleet, leaving: Collection[str], rule: HandOverRule | None = None) -> dict[str, Grant]:
    """Share the room of those that stay among those that leave, by the streams that they have. O(instances).

    Args:
        model: its instances, whatever their phase, and what waits.
        leaving: ids of those that are to hand over; what else drains neither gives nor takes.
        rule: the bounds; None: the defaults.
    """
    rule = rule or HandOverRule()
    going = [
        each
        for each in model.instances
        if each.instance_id in leaving and 0 < _streams(each) <= rule.begin_below * each.batch_size
    ]
    if not going:
        return {}
    streams = sum(map(_streams, going))
    tokens_each = max(_LEAST_TOKENS, sum(each.kv_usage * each.kv_capacity_tokens for each in going) / streams)
    room = {Role.INTERACTIVE: 0.0, Role.MIXED: 0.0, Role.BATCH: 0.0}
    rates = []
    for each in model.instances:
        if each.phase is not Phase.READY or each.instance_id in leaving:
            continue
        free, tokens_per_s = _room(each, tokens_each, rule), _prefill_tokens_per_s(each)
        if free > 0 and tokens_per_s > 0:
            room[each.role] += free
            rates.append(rule.prefill_share * tokens_per_s)
    if not rates:
        return {}
    # Whoever waits already has the first claim to a free slot.
    interactive = 0.0 if model.traffic.queued_interactive else room[Role.INTERACTIVE] + room[Role.MIXED]
    batch = 0.0 if model.backlog else room[Role.MIXED] + room[Role.BATCH]
    interactive, batch, tokens = interactive / rule.spread_s, batch / rule.spread_s, sum(rates)
    found = {}
    # One after another, the one that is empty soonest in front: a GPU is free when the last stream has gone.
    for each in sorted(going, key=lambda one: (_streams(one), one.instance_id)):
        mine = Grant(
            min(interactive, each.running_interactive / INTERVAL_S),
            min(batch, each.running_batch / INTERVAL_S),
            min(tokens, _streams(each) * tokens_each / INTERVAL_S),
            fmean(rates),
        )
        interactive -= mine.interactive_per_s
        batch -= mine.batch_per_s
        tokens -= mine.tokens_per_s
        found[each.instance_id] = mine
    return found


def _streams(instance: FleetInstance) -> int:
    return instance.running_interactive + instance.running_batch


def _room(instance: FleetInstance, tokens_each: float, rule: HandOverRule) -> float:
    """Streams that an instance takes beside what it has; 0 where requests wait already."""
    if instance.waiting_interactive or instance.waiting_batch:
        return 0.0
    slots = rule.fill * min(instance.batch_size, instance.safe_batch_size) - _streams(instance)
    kv = (rule.fill - instance.kv_usage) * instance.kv_capacity_tokens / tokens_each
    return max(0.0, min(slots, kv))


def _prefill_tokens_per_s(instance: FleetInstance) -> float:
    """Tokens that the engine's steps take in beside its decodes.

    Their budget is what its local autoscaler expects to keep the ITL SLO when it is filled.
    """
    running = _streams(instance)
    step_s = running / instance.tokens_per_s if instance.tokens_per_s > 0 and running else _PRESUMED_STEP_S
    return max(0, instance.step_token_budget - running) / step_s


def choose(
    streams: Iterable[RunningStream],
    *,
    interactive: float,
    batch: float,
    tokens: float,
    prefill_tokens_per_s: float,
    rule: HandOverRule | None = None,
) -> HandOver:
    """Choose who goes now: those first that have the most behind them, for theirs will be the longest drain.

    A stream may go when its mean ITL, the time of the move included, is within its share of the SLO already
    by the tokens that it has: then no length that it may have breaks the promise. O(n log n).

    Args:
        streams: those that decode.
        interactive: interactive streams that may go; a fraction is no stream.
        batch: batch streams that may go.
        tokens: prompt and delivered tokens that those who go may have together; the last one may have more.
        prefill_tokens_per_s: at which an instance takes in what comes; 0: unknown, nobody goes.
        rule: the bounds; None: the defaults.
    """
    rule = rule or HandOverRule()
    left = [interactive, batch]
    chosen: list[object] = []
    total = 0
    fixed = early = young = 0
    for each in sorted(streams, key=lambda one: (-one.delivered_tokens, str(one.request_id))):
        cost = each.prompt_tokens + each.delivered_tokens
        if not each.resumable:
            fixed += 1
        elif each.moved_s < rule.again_s:
            young += 1
        elif not _affords(each, cost, prefill_tokens_per_s, rule):
            early += 1
        elif left[each.batch] >= 1 and total < tokens:
            left[each.batch] -= 1
            total += cost
            chosen.append(each.request_id)
    numbers = {
        "streams": float(len(chosen)),
        "tokens": float(total),
        "not_resumable": float(fixed),
        "moved_lately": float(young),
        "slo_too_tight": float(early),
    }
    reason = "the others have room for it" if chosen else "nothing may go now"
    return HandOver(tuple(chosen), total, reason, numbers)


def _affords(stream: RunningStream, tokens: int, prefill_tokens_per_s: float, rule: HandOverRule) -> bool:
    if prefill_tokens_per_s <= 0 or stream.delivered_tokens < 1:
        return False
    gap_s = rule.overhead_s + tokens / prefill_tokens_per_s
    if gap_s > rule.longest_gap_s:
        return False
    return stream.streaming_s + gap_s <= rule.itl_share * stream.itl_slo_s * stream.delivered_tokens
