"""Which instances stop once what was missing has been placed."""

from __future__ import annotations

from collections import Counter
from heapq import heapify, heappop, heapreplace

from chiron.policy.decisions import Alternative
from chiron.store import InstanceRecord, ModelRecord
from services.global_controller.decisions.causes import NOTHING, of_node, of_roll
from services.global_controller.fleet import Fleet, Work, is_coming, is_failed, is_ready
from services.global_controller.model_roles import beyond_wanted
from services.global_controller.rolls import is_proven, is_trusted, roll_numbers, stall_reason
from services.global_controller.view import Liveness
from services.global_controller.wording import counted


def retire(work: Work, model: ModelRecord) -> None:
    """Stops what a model has too much of; never below what serves now and is wanted."""
    _retire_draining(work, model, work.fleet(model))
    _retire_sick(work, model, work.fleet(model))
    _retire_outdated(work, model, work.fleet(model))
    _retire_surplus(work, model, work.fleet(model))
    _give_up_lost(work, model, work.fleet(model))


def _retire_draining(work: Work, model: ModelRecord, fleet: Fleet) -> None:
    """What is drained stays until its replacement serves; without room for one it goes all the same.

    Without room one goes at a time: the next once nobody of the model is on the way out or in.

    A drain of a node must end, so that there a replacement that has failed counts as none, and with an agent
    that leaves all go at once: it ends them itself.
    """
    if not fleet.draining:
        return
    elsewhere = (*fleet.fresh, *fleet.outdated)
    ready = sum(map(is_ready, elsewhere))
    to_come = [record for record in elsewhere if not is_ready(record)]
    coming = sum(map(is_coming, to_come))
    still_needed = max(0, model.desired_instances - ready)
    numbers = {"desired": model.desired_instances, "ready_elsewhere": ready, "coming": coming}

    def stop(record: InstanceRecord, where: str) -> None:
        work.stop(record, f"{work.emptying(record)} and {where}", numbers, follows=drain_of(work, record))

    ordered = _least_loaded(work, fleet.draining)
    spare = max(0, len(ordered) - still_needed)
    for record in ordered[:spare]:
        stop(record, "another one serves in its place" if still_needed else "enough others serve")
    staying = ordered[spare:]
    leaving = [record for record in staying if work.nodes[record.node_id].leaving]
    for record in leaving[: max(0, len(staying) - coming)]:
        stop(record, "no other node has GPUs for it")
        staying.remove(record)
    going = fleet.stopping or len(staying) < len(ordered)
    if staying and not going and not coming:
        # Nothing is on its way that could take a place: what could have been placed has been.
        victim = next((one for one in staying if work.nodes[one.node_id].emptying or not to_come), None)
        if victim is not None:
            stop(victim, _why_without(victim, to_come))
            staying.remove(victim)
    for record in staying:
        work.explain(
            model.name, f"{record.instance_id} serves on although {_why_kept(work, record, to_come)}"
        )


def _why_without(record: InstanceRecord, to_come: list[InstanceRecord]) -> str:
    """Why an instance goes without a replacement."""
    if to_come:
        return f"{to_come[0].instance_id}, which was to take its place, has failed"
    return "no GPU is free for another one" if record.draining else "no other node has GPUs for it"


def _why_kept(work: Work, record: InstanceRecord, to_come: list[InstanceRecord]) -> str:
    """Why an instance is drained and yet stays, and until when."""
    why = work.emptying(record)
    if not to_come:
        return f"{why}: no GPU is free for another one, so that one goes at a time"
    other = next((one for one in to_come if is_coming(one)), to_come[0])
    trouble = other.observed.reason if is_failed(other) or other.observed.restarts else ""
    until = f"{why}: until {other.instance_id} serves"
    return f"{until}, whose start fails ({trouble})" if trouble else until


def drain_of(work: Work, record: InstanceRecord) -> str:
    """As Act.follows: from which decision it follows that an instance is drained."""
    return of_node(record.node_id) if work.nodes[record.node_id].emptying else NOTHING


def _retire_sick(work: Work, model: ModelRecord, fleet: Fleet) -> None:
    """An instance on a GPU that is not healthy serves on until another one serves in its place."""
    ready = sum(map(is_ready, (*fleet.fresh, *fleet.outdated)))
    keep = min(len(fleet.sick), max(0, model.desired_instances - ready))
    for record in _least_loaded(work, fleet.sick)[: len(fleet.sick) - keep]:
        numbers = {"desired": model.desired_instances, "ready_elsewhere": ready}
        reason = f"{work.illness(record)} and enough others serve"
        work.stop(record, reason, numbers, follows=NOTHING)


def _retire_outdated(work: Work, model: ModelRecord, fleet: Fleet) -> None:
    """An old version's instance goes for each one of the new version that has proven itself.

    Once the roll has stalled none goes, but what a lower wanted count leaves over.
    """
    proven = sum(is_proven(work, model, record) for record in fleet.fresh)
    serving = 0 if stall_reason(work, model, fleet) else proven
    spare = min(len(fleet.outdated), max(0, serving + len(fleet.outdated) - model.desired_instances))
    for record in old_first(work, model, fleet.outdated)[:spare]:
        numbers = {
            "desired": model.desired_instances,
            "ready_of_new_version": proven,
            "of_old_version": len(fleet.outdated),
            "spec_version": record.spec_version,
            "wanted_spec_version": model.spec_version,
            **roll_numbers(model, fleet),
        }
        reason = (
            f"runs spec version {record.spec_version}, and version {model.spec_version} has "
            f"{counted(proven, 'instance')} that can take its place"
        )
        work.stop(record, reason, numbers, action="replace", follows=of_roll(model.name))


def _retire_surplus(work: Work, model: ModelRecord, fleet: Fleet) -> None:
    """Victims in order: failed, not yet serving, on trial, node out of touch, of a role of which too many
    run, least loaded, from the fullest node.

    Together with the old instances of a roll, one more may run than is wanted; with those that a stalled roll
    keeps, none, and what has failed stays to be seen.

    While a node comes back, nothing stops: what its instances do is known with its first report, and the one
    that would have been taken for not serving may be the one that serves.
    """
    present, wanted = fleet.fresh, model.desired_instances
    if wanted and stall_reason(work, model, fleet):
        present = [record for record in fleet.fresh if not is_failed(record)]
        wanted = max(0, wanted - len(fleet.outdated))
    elif wanted and fleet.outdated:
        wanted = max(0, wanted + 1 - len(fleet.outdated))
    if any(work.liveness(record.node_id) is Liveness.JOINING for record in present):
        return
    on_node = Counter(record.node_id for record in fleet.fresh)
    beyond = beyond_wanted(model, (*fleet.fresh, *fleet.outdated))

    def rank(record: InstanceRecord) -> tuple[int, bool, bool, int, int, str]:
        state = 0 if is_failed(record) else 1 if is_coming(record) else 2 + is_proven(work, model, record)
        in_touch = work.liveness(record.node_id) is Liveness.LIVE
        spared = beyond[record.role] <= 0
        return state, in_touch, spared, work.load(record), -on_node[record.node_id], record.instance_id

    records = {record.instance_id: record for record in present}
    ranks = [rank(record) for record in present]
    heapify(ranks)
    while len(ranks) > wanted:
        victim = records[ranks[0][-1]]
        if ranks[0] != rank(victim):
            # Its node has lost another one since: it comes later than it stands.
            heapreplace(ranks, rank(victim))
            continue
        heappop(ranks)
        if is_failed(victim):
            choice = "it had failed"
        elif is_coming(victim):
            choice = "it does not serve yet"
        else:
            choice = f"it has the least to do ({work.load(victim)} requests)"
        numbers = {
            "desired": model.desired_instances,
            "instances": len(ranks) + 1,
            "requests": work.load(victim),
            "on_node": on_node[victim.node_id],
        }
        reason = f"{len(ranks) + 1} instances where {wanted} should run; {choice}"
        others: tuple[Alternative, ...] = ()
        if ranks:
            other = records[ranks[0][-1]]
            scarcer = beyond[victim.role] > 0 >= beyond[other.role]
            others = (_instead_of(work, victim, other, scarcer=scarcer),)
        on_node[victim.node_id] -= 1
        beyond[victim.role] -= 1
        work.stop(victim, reason, numbers, alternatives=others)


def _instead_of(work: Work, victim: InstanceRecord, other: InstanceRecord, *, scarcer: bool) -> Alternative:
    """The one that would have gone next, and why it was not this time. scarcer: by its role."""
    mine, its = work.load(victim), work.load(other)
    if is_ready(other) and not is_ready(victim):
        why = "it serves, and the chosen one does not"
    elif scarcer:
        why = "there are not too many of its role"
    elif its > mine:
        why = f"it has more to do ({its} requests, the chosen one {mine})"
    elif its == mine:
        why = f"it has as much to do ({its} requests), and comes later by its node or its id"
    else:
        why = "it has proven itself, or its node is in touch"
    numbers = {"requests": float(its), "chosen_requests": float(mine)}
    return Alternative(f"stop {other.instance_id}", why, numbers)


def _give_up_lost(work: Work, model: ModelRecord, fleet: Fleet) -> None:
    """A dead node's instance is given up once others serve in its place; until then it may come back."""
    ready = sum(map(is_ready, (*fleet.fresh, *fleet.outdated)))
    keep = min(len(fleet.lost), max(0, model.desired_instances - ready))
    for record in fleet.lost[keep:]:
        node = work.nodes.get(record.node_id)
        silent_s = node.silent_s if node else 0.0
        numbers = {"desired": model.desired_instances, "ready_elsewhere": ready, "silent_s": silent_s}
        reason = (
            f"{record.node_id} has been silent for {silent_s:.1f} s; "
            f"elsewhere the model has {counted(ready, 'instance')} that can serve"
        )
        work.stop(record, reason, numbers, action="replace", follows=NOTHING)


def old_first(work: Work, model: ModelRecord, outdated: list[InstanceRecord]) -> list[InstanceRecord]:
    """Instances of other versions in the order in which they go: what does not serve, versions that never
    proved themselves, roles of which too many run, the least loaded."""
    fleet = work.fleet(model)
    beyond = beyond_wanted(model, (*fleet.fresh, *fleet.outdated))

    def rank(record: InstanceRecord) -> tuple[bool, bool, bool, int, str]:
        spared = beyond[record.role] <= 0
        return is_ready(record), is_trusted(model, record), spared, work.load(record), record.instance_id

    return sorted(outdated, key=rank)


def _least_loaded(work: Work, records: list[InstanceRecord]) -> list[InstanceRecord]:
    return sorted(records, key=lambda record: (work.load(record), record.instance_id))
