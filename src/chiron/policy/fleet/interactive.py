"""How many instances interactive demand needs: keep IBP near Θ.

The rule is the paper's (arXiv 2501.08090, interactive backpressure). Counting slots, looking one load time
ahead, and the test that a scale-down lasts are reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from chiron.policy.decisions import Alternative
from chiron.policy.fleet.arrivals import ArrivalRate
from chiron.policy.fleet.backpressure import interactive_backpressure
from chiron.policy.fleet.ebb import ebbing
from chiron.policy.fleet.settings import ChironSettings
from chiron.policy.fleet.state import ModelState
from chiron.policy.fleet.supply import Supply
from chiron.policy.fleet.theta import Theta
from chiron.policy.fleet.weighed import (
    fewer_for_arrivals,
    fewer_for_demand,
    fewer_for_growth,
    fewer_for_queue,
    keep,
)
from chiron.policy.snapshots import NEVER_S, ModelFleet
from chiron.policy.words import Role

_DRAIN_TAIL = 0.01
_BUSY = 0.9
_REACH = 1.1


@dataclass(frozen=True, slots=True)
class InteractiveNeed:
    """What interactive demand asks for, in instances."""

    missing_now: int
    """With what serves now: what only a change of role can cover."""
    missing: int
    """With what loads, too."""
    surplus: int
    """That may go; never together with `missing`."""
    deficit: float
    """Share of the demand that goes unserved without the missing ones, 0 to 1."""
    reason: str
    numbers: Mapping[str, float]
    weighed: tuple[Alternative, ...] = ()
    """Of what is missing: one fewer. Else: to keep what goes, and to retire one more."""
    one_fewer: Callable[[int], Alternative] | None = None
    """One fewer still where so many of the missing ones are not started; None: none is missing."""


def assess_interactive(
    model: ModelFleet, supply: Supply, state: ModelState, settings: ChironSettings, now_s: float
) -> InteractiveNeed:
    """Compare demand with capacity, now and one load time ahead.

    Demand D counts requests that run or wait; capacity C slots, as far as steps can serve them. Room is
    C (1 + q), the queue share q being what full instances admit in a part of the TTFT SLO, at most in a load
    time: so many may wait, and be on time. Free slots that steps cannot serve hold a part of the queue; what
    waits for prompts alone may use a larger part of the SLO. Instances are added when D exceeds Θ × room,
    loading ones counted; or when arrivals exceed what serves by so much that D exceeds the room before a new
    instance could be ready. For one load time after a retirement the limit is the room itself: what is left
    takes over what the others did, and holds more for it, for which the retirement is not undone.

    Without a TTFT SLO a load time alone bounds the queue, and counts also in fact: once requests have been in
    line for so long without a break, one instance is added, and another one only when the first has had a
    load time to help.
    """
    load_s, each = model.load_time_s, supply.slots_each
    theta = _theta(state, settings, supply.demand, load_s)
    length = state.interactive_lengths.mean
    requests_each = state.curve.tokens_per_s(each) / length if state.lengths_known else 0.0
    # A queue that outlasts a load time waits for longer than a new instance would: it saves nothing.
    queue_s = min(settings.ttft_share * model.ttft_slo_s, load_s)
    step_queue_s = min(settings.step_ttft_share * model.ttft_slo_s, load_s)
    waited_s = now_s - state.in_line_s
    room_each = min(supply.open_each + queue_s * requests_each, each + step_queue_s * requests_each)
    queue_share = room_each / each - 1
    room_share = 1 + queue_share
    target = theta.value * room_share
    demand, coming = supply.demand, supply.coming_slots
    rate = state.arrivals.rate(settings.confidence) if requests_each else None
    ahead = demand + _growth(model, supply, rate, requests_each)
    numbers = {
        "ibp": interactive_backpressure(demand, supply.slots),
        "ibp_ahead": interactive_backpressure(ahead, coming),
        "queue_share": queue_share,
        "theta": theta.value,
        "theta_measured": float(theta.measured),
        "target": target,
        "demand": float(demand),
        "slots": supply.slots,
        "slots_each": each,
        "slots_loading": coming - supply.slots,
        "step_tokens_each": state.curve.step_tokens_per_request,
        "waited_s": waited_s,
        "requests_per_s_each": requests_each,
        "arrivals_per_s": rate.settled if rate else 0.0,
        "arrivals_error": rate.settled_error if rate else 0.0,
    }
    missing_now = max(0, _instances((demand / target - supply.slots) / each))
    # What is left takes over what went, and holds more for it: no growth that Θ must keep headroom for.
    taking_over = now_s - state.last_removed_s < load_s
    missing = max(0, _instances((demand / (room_share if taking_over else target) - coming) / each))
    reason = _basis(theta, demand, settings)
    if missing:
        reason = f"demand exceeds the target share of the slots, loading ones included; {reason}"
    growing = False
    room = coming * room_share
    number = len(supply.interactive) + len(supply.loading_interactive)
    if ahead > room and rate:
        further = max(_instances((ahead - room) / each), _instances(rate.likely / requests_each - number))
        if further > missing:
            missing = further
            reason = "arrivals will exceed the room before a new instance can be ready"
            growing = True
    standing = not missing and model.ttft_slo_s >= NEVER_S and waited_s >= load_s
    standing = standing and now_s - state.last_added_s >= 2 * load_s
    if standing:
        missing = 1
        reason = f"requests have waited in line for {waited_s:.0f} s, longer than an instance takes to load"
    if missing or missing_now:
        needed = max(demand / target, ahead)
        deficit = 1 - supply.slots / needed if needed > supply.slots else 0.0

        def one_fewer(not_started: int) -> Alternative:
            added = missing - not_started - 1
            if standing:
                return fewer_for_queue(demand - supply.slots, waited_s)
            if growing and rate and ahead <= room + added * each:
                return fewer_for_arrivals(rate.likely, number + added, requests_each)
            if growing:
                return fewer_for_growth(ahead, room + added * each, load_s)
            if missing:
                limit = room_share if taking_over else target
                return fewer_for_demand(demand, coming + added * each, limit, theta.value)
            return fewer_for_demand(demand, supply.slots + (missing_now - 1) * each, target, theta.value)

        return InteractiveNeed(missing_now, missing, 0, deficit, reason, numbers, (one_fewer(0),), one_fewer)
    surplus, why, others = _surplus(model, supply, state, settings, now_s, rate, queue_share)
    if not surplus and demand > supply.slots:
        begin_s = max(queue_s, step_queue_s) if supply.open_each > each else queue_s
        why = f"{demand - supply.slots:.0f} requests wait, and are expected to begin within {begin_s:.0f} s"
    return InteractiveNeed(0, 0, surplus, 0.0, f"{why}; {reason}", numbers, others)


def _theta(state: ModelState, settings: ChironSettings, demand: float, load_s: float) -> Theta:
    """Θ at this demand: room for what may arrive within a load time beyond what did within the last one.

    Demand itself grows as well when the fleet has become smaller, or while instances load, and that is no
    reason to keep more of them.
    """
    theta = state.bursts.theta(
        state.arrived, load_s, settings.theta_quantile, settings.default_theta, settings.min_theta
    )
    if not theta.measured:
        return Theta(settings.default_theta, demand * (1 / settings.default_theta - 1), measured=False)
    value = max(settings.min_theta, demand / (demand + theta.growth) if demand else 0.0)
    return Theta(value, theta.growth, measured=True)


def _instances(fraction: float) -> int:
    # A rounding error must not cost an instance.
    return math.ceil(fraction - 1e-9)


def _basis(theta: Theta, demand: float, settings: ChironSettings) -> str:
    if not demand and theta.value <= settings.min_theta:
        return "Θ is at its least: nothing is asked for"
    return "Θ from measured growth" if theta.measured else "Θ is the default: too little history"


def _growth(
    model: ModelFleet,
    supply: Supply,
    rate: ArrivalRate | None,
    requests_each: float,
) -> float:
    """Requests by which demand surely grows within one load time."""
    if rate is None or not requests_each:
        return 0.0
    load_s = model.load_time_s
    serving = len(supply.interactive) + sum(
        max(0.0, load_s - instance.ready_in_s) / load_s for instance in supply.loading_interactive
    )
    return max(0.0, rate.rising - serving * requests_each) * load_s


def _surplus(
    model: ModelFleet,
    supply: Supply,
    state: ModelState,
    settings: ChironSettings,
    now_s: float,
    rate: ArrivalRate | None,
    queue_share: float,
) -> tuple[int, str, tuple[Alternative, ...]]:
    """Instances that may go, why no more, and what else was weighed.

    What is left must hold the last load time's peak below the target with hysteresis, and keep below the
    target for as long as makes the change worth its cost, even if arrivals are a standard error faster. And
    the requests that run once fewer instances do the same work (Little's law) must be below the target.
    """
    number = len(supply.interactive)
    if not number:
        return 0, "no interactive capacity is ready", ()
    if supply.loading_interactive or now_s - state.last_added_s < 2 * model.load_time_s:
        return 0, "cool-down: capacity has just been added", ()
    if model.backlog and _busy(model, supply):
        return 0, "batch work fills the spare slots", ()
    if rate is not None and settings.hand_over:
        target = _theta(state, settings, supply.demand + supply.leaving, model.load_time_s).value
        requests_each = state.curve.tokens_per_s(supply.slots_each) / state.interactive_lengths.mean
        ebb, one_more = ebbing(supply, rate, target * (1 + queue_share), requests_each, settings)
        if ebb:
            return ebb, "arrivals ebb away, and what it runs goes on at the others", one_more
    if now_s - state.last_removed_s < model.load_time_s:
        return 0, "cool-down: what is left takes over what went", ()
    if rate is None:
        return *_unasked(number, model, state, settings, now_s), ()
    each, load_s = supply.slots_each, model.load_time_s
    lengths = state.interactive_lengths
    requests_each = state.curve.tokens_per_s(each, _REACH) / lengths.mean
    tail = lengths.tail(_DRAIN_TAIL)
    if model.max_context_tokens:
        tail = min(tail, model.max_context_tokens)
    drain_s = tail * state.curve.itl_s(supply.demand / number)
    hold_s = max(settings.min_hold_s, settings.payback * (load_s + drain_s))
    arrivals = rate.settled + rate.settled_error
    peak = state.peak_demand
    target = _theta(state, settings, peak, load_s).value * (1 + queue_share)
    surplus = 0
    more: tuple[Alternative, ...] = ()
    for candidate in range(1, min(number, max(1, int(number * settings.retire_share))) + 1):
        left = number - candidate
        slots = target * (supply.slots - candidate * each)
        growth = max(0.0, arrivals - left * requests_each) * hold_s
        if peak > slots * (1 - settings.hysteresis) or peak + growth > slots:
            more = (_one_more(peak, growth, slots * (1 - settings.hysteresis), slots, hold_s),)
            break
        # Fuller instances take longer for each request. Where all slots are taken, their growth has decided.
        running = state.curve.running_at(rate.settled * lengths.mean / left) if left else 0.0
        held = left * min(each, running)
        # As many arrive by chance, and the fuller they are the longer they stay.
        held += math.sqrt(held)
        if held > slots:
            more = (_fuller(held, slots),)
            break
        surplus = candidate
    if surplus:
        limit = target * (1 - settings.hysteresis)
        kept = keep(peak, supply.slots - surplus * each, limit, hold_s)
        return surplus, f"what is left carries the demand for at least {hold_s:.0f} s", (kept, *more)
    return 0, f"one instance less would not carry the demand for {hold_s:.0f} s", more


def _one_more(peak: float, growth: float, calm: float, slots: float, hold_s: float) -> Alternative:
    """Why the next one may not go: what the slots that it would leave may carry is exceeded."""
    numbers = {"peak_demand": peak, "growth": growth, "carried": slots}
    if peak > calm:
        why = f"the rest may carry {calm:.0f} requests after a removal, and the last peak was {peak:.0f}"
    else:
        why = (
            f"{peak + growth:.0f} requests are to be expected within {hold_s:.0f} s, and {slots:.0f} may come"
        )
    return Alternative("retire one more", why, numbers)


def _fuller(running: float, slots: float) -> Alternative:
    why = f"{running:.0f} requests would run on the fuller rest, which may carry {slots:.0f}"
    return Alternative("retire one more", why, {"running": running, "carried": slots})


def _unasked(
    number: int, model: ModelFleet, state: ModelState, settings: ChironSettings, now_s: float
) -> tuple[int, str]:
    """Let all go that nobody has asked for, where too few requests have ended to tell what one takes."""
    quiet_s = now_s - state.asked_s
    if quiet_s < max(settings.min_hold_s, settings.payback * model.load_time_s):
        return 0, "too little is known to remove any"
    return number, f"no interactive request has come for {quiet_s:.0f} s"


def _busy(model: ModelFleet, supply: Supply) -> bool:
    """Tell whether batch work, that which waits included, keeps the slots full: then none is spare."""
    open_to_it = [i for i in supply.interactive if i.role is Role.MIXED]
    running = sum(i.running_interactive + i.running_batch for i in open_to_it)
    waiting = sum(group.requests for group in model.backlog)
    return running + waiting >= _BUSY * supply.slots_each * len(open_to_it) > 0
