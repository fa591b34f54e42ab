"""What else a plan weighed, in words: the figures are those that decided."""

from __future__ import annotations

from collections.abc import Sequence

from chiron.policy.decisions import Alternative
from chiron.policy.fleet.retire import drains_soonest
from chiron.policy.fleet.supply import Supply
from chiron.policy.snapshots import FleetInstance, ModelFleet
from chiron.policy.words import Phase, Role

_OPERATOR = "an operator has set the role"


def fewer_for_demand(demand: float, slots: float, limit: float, theta: float) -> Alternative:
    """One interactive instance less than are added: what would have to be carried by these slots.

    limit: the share of the slots that demand may take, Θ with what may queue.
    """
    numbers = {"demand": demand, "slots": slots, "limit": limit, "theta": theta}
    if slots <= 0:
        requests = "1 request" if round(demand) == 1 else f"{demand:.0f} requests"
        return Alternative("start one fewer", f"{requests} would have no slot", numbers)
    numbers["ibp"] = demand / slots
    why = f"IBP would be {demand / slots:.2f}, more than {limit:.2f} (Θ {theta:.2f} and the queue's share)"
    return Alternative("start one fewer", why, numbers)


def fewer_for_growth(ahead: float, room: float, load_s: float) -> Alternative:
    """The same where arrivals grow faster than an instance loads.

    room: requests that have room now, and the slots of what starts: nobody queues there yet.
    """
    why = (
        f"{ahead:.1f} requests would be there within a load time of {load_s:.0f} s, "
        f"and room for {max(0.0, room):.1f}"
    )
    return Alternative("start one fewer", why, {"demand_ahead": ahead, "room": room})


def fewer_for_arrivals(likely: float, instances: int, requests_each: float) -> Alternative:
    """The same where there would be room, and the room would fill up: more arrive than are served.

    likely, requests_each: requests per second, of all arrivals and that one instance serves.
    """
    serve = instances * requests_each
    which = "1 instance serves" if instances == 1 else f"{instances} instances serve"
    why = f"{likely:.2f} requests may arrive per second, and {which} {serve:.2f}"
    return Alternative("start one fewer", why, {"arrivals_likely": likely, "served": serve})


def fewer_for_queue(waiting: float, waited_s: float) -> Alternative:
    """The same where a queue stands that what serves does not work off."""
    why = f"{waiting:.0f} requests are in line without a slot, and have been for {waited_s:.0f} s"
    return Alternative("start one fewer", why, {"waiting": waiting, "waited_s": waited_s})


def fewer_for_deadlines(missing: float, count: int, late: int) -> Alternative:
    """One batch instance less than are added."""
    groups = "1 request group" if late == 1 else f"{late} request groups"
    why = f"the deadlines ask for {missing:.2f} more, and {groups} would be late"
    return Alternative("start one fewer", why, {"missing": missing, "started": float(count - 1)})


def leave_to_spare(missing: float, most: float) -> Alternative:
    """Batch work could wait for what interactive work leaves."""
    why = f"{missing:.2f} of an instance is missing, and spare slots are given their chance below {most:.2f}"
    return Alternative("leave it to spare slots", why, {"missing": missing, "limit": most})


def role_change(changed: int, needed: int, fixed: int) -> Alternative:
    """Batch instances could become mixed: those that could already did, but for those of a fixed role."""
    if not changed:
        why = _OPERATOR if fixed else "the model has none that serves"
        return Alternative("make a batch instance mixed", why)
    which = f"{changed}" if fixed else f"all {changed} that serve"
    why = f"{which} become mixed, and {needed} more are needed{f'; elsewhere {_OPERATOR}' if fixed else ''}"
    return Alternative("make a batch instance mixed", why, {"changed": changed, "needed": needed})


def open_to_batch(opened: int, supply: Supply, fixed: int) -> Alternative:
    """Interactive instances could take batch work: those that were closed to it, and may change, are open."""
    if fixed:
        why = f"{f'{opened} open, and that is not enough; elsewhere ' if opened else ''}{_OPERATOR}"
    elif opened:
        why = f"all {opened} that were closed to batch work open, and that is not enough"
    elif supply.interactive:
        why = "all take batch work already, and what they spare is not enough"
    else:
        why = "none serves"
    return Alternative("open interactive instances to batch work", why, {"opened": opened})


def wake(supply: Supply, woken: int) -> Alternative:
    """A sleeping instance could wake: those that could do."""
    asleep = len(supply.sleeping)
    if not asleep:
        why = f"the {woken} that slept wake, and more are needed" if woken else "none sleeps"
        return Alternative("wake a sleeping instance", why, {"woken": woken})
    taken = sum(not instance.can_wake for instance in supply.sleeping)
    if taken == asleep:
        why = f"others use the GPUs of {'it' if asleep == 1 else f'all {asleep}'}"
    else:
        why = "its GPUs are promised to others, or the budget is spent"
    return Alternative("wake a sleeping instance", why, {"asleep": asleep, "gpus_taken": taken})


def start_instead(model: ModelFleet, sooner: str, sooner_s: float) -> Alternative:
    """A new instance would do as well, and later."""
    why = f"it would serve in about {model.load_time_s:.0f} s; {sooner}"
    return Alternative("start an instance", why, {"load_time_s": model.load_time_s, "instead_s": sooner_s})


def no_gpu(count: int, role: Role, why: str) -> Alternative:
    """Instances that are wished for and found no GPU."""
    return Alternative(f"start {count} {role.name.lower()}", why, {"count": count})


def next_candidate(
    verb: str, chosen: Sequence[FleetInstance], candidates: Sequence[FleetInstance]
) -> tuple[Alternative, ...]:
    """The instance that would have been taken next, and why it was not; none: there is no other."""
    if not chosen or len(candidates) <= len(chosen):
        return ()
    other, last = drains_soonest(candidates, len(chosen) + 1)[-1], chosen[-1]
    mine, its = _requests(last), _requests(other)
    numbers = {"requests": float(its), "chosen_requests": float(mine)}
    if last.phase is Phase.LOADING and other.phase is not Phase.LOADING:
        why = "it serves already, and what loads goes first"
    elif its > mine:
        why = f"it has {its} requests to finish, the chosen one {mine}"
    else:
        why = f"it has as many requests to finish ({its}) and is no cheaper to lose"
    return (Alternative(f"{verb} {other.instance_id}", why, numbers),)


def keep(peak: float, slots_left: float, limit: float, hold_s: float) -> Alternative:
    """An interactive instance that goes could stay."""
    why = (
        f"the others carry the last load time's peak of {peak:.0f} requests at IBP {peak / slots_left:.2f}, "
        f"not more than {limit:.2f}, and will for {hold_s:.0f} s"
        if slots_left > 0
        else f"nothing has been asked for, and nothing will be for {hold_s:.0f} s"
    )
    return Alternative("keep it", why, {"peak_demand": peak, "slots_left": slots_left, "limit": limit})


def keep_for_deadlines(work_tokens: float, made_tokens: float, due_s: float) -> Alternative:
    """A batch instance that goes while batch requests wait could stay.

    work_tokens: of the group that is tightest, and of what goes before it, with a margin. made_tokens: by the
    others, in the `due_s` seconds until it must be done.
    """
    why = f"the others make {made_tokens:.0f} tokens within {due_s:.0f} s, of {work_tokens:.0f} to be made"
    return Alternative("keep it", why, {"work": work_tokens, "made": made_tokens, "due_s": due_s})


def sleep_instead(*, shared: bool) -> Alternative:
    """A retired instance could sleep."""
    why = "it cannot, or its node has no memory for it" if shared else "no other model could use its GPUs"
    return Alternative("put it to sleep", why)


def retire_instead(model: ModelFleet) -> Alternative:
    """A sleeper could have been retired."""
    why = f"waking takes about {model.wake_time_s:.0f} s, loading anew {model.load_time_s:.0f} s"
    numbers = {"wake_time_s": model.wake_time_s, "load_time_s": model.load_time_s}
    return Alternative("retire it", why, numbers)


def let_wait(urgent: ModelFleet, model: ModelFleet, gpus: int, free: int, coming: int) -> Alternative:
    """The urgent model could wait for GPUs that become free by themselves."""
    why = f"it needs {gpus} GPUs on one node; {free} are free there and {coming} become so"
    numbers = {
        "urgent_priority": float(urgent.priority),
        "priority": float(model.priority),
        "free": float(free),
        "coming": float(coming),
    }
    return Alternative(f"let {urgent.name} wait", why, numbers)


def _requests(instance: FleetInstance) -> int:
    return (
        instance.running_interactive
        + instance.waiting_interactive
        + instance.running_batch
        + instance.waiting_batch
    )
