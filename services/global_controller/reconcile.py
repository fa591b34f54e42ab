"""From what is wanted and what is seen to what is written next. Pure: view in, plan out.

Applied again and again it comes to rest: a view in which nothing differs from what is wanted gives an empty
plan. In each pass the order is: deleted models stop; unknown workers are adopted or stopped; rolls are judged
(rolls.py); what serves nobody and must go anyway goes; missing instances are placed; what is then superfluous
stops (retire.py).
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from chiron.policy.placement import NodeGpus, Placement, PlacementPlan, Refusal, Want, place
from chiron.store import InstanceRecord, ModelRecord, Observed, SpecVersion
from services.global_controller.decisions.causes import NOTHING, of_node, of_roll
from services.global_controller.fleet import (
    Work,
    held_gpus,
    is_coming,
    is_current,
    is_failed,
    is_ready,
    is_stopping,
)
from services.global_controller.model_roles import Role, RoleSeats
from services.global_controller.retire import drain_of, old_first, retire
from services.global_controller.rolls import (
    earlier_version,
    finish_roll,
    follow_roll,
    is_doubtful,
    is_mending,
    is_trusted,
    missing,
    roll_numbers,
    stall_reason,
)
from services.global_controller.sleepers import stop_sleepers
from services.global_controller.view import Act, ClusterView, Liveness, Plan

DEFAULT_MAX_UNAVAILABLE = 1
"""Instances that may be missing during a roll for which no GPU is free, where the model says nothing."""


def reconcile(view: ClusterView, new_id: Callable[[str], str]) -> Plan:
    """Decides what to change.

    Args:
        view: the cluster.
        new_id: makes an instance id for a model's name; called again when the id is taken.
    """
    work = Work(view, new_id)
    _stop_deleted(work)
    _take_unknown(work)
    if not view.settling:
        for model in work.live_models():
            follow_roll(work, model)
        _stop_idle_leavers(work)
        stop_sleepers(work)
    _place_missing(work)
    if not view.settling:
        for model in work.live_models():
            retire(work, model)
            finish_roll(work, model)
    _explain_failures(work)
    return work.plan()


def _stop_deleted(work: Work) -> None:
    for model in work.view.models:
        if model.deleted:
            for record in work.instances(model.name):
                if not is_stopping(record):
                    work.stop(record, f"model {model.name} was deleted", {})


def _take_unknown(work: Work) -> None:
    """Adopts workers that serve while too few others do; stops those of models that need or exist no more.

    A worker of a model that was never heard of is left alone: a controller that lost its memory must not
    end what serves.
    """
    models = {model.name: model for model in work.view.models}
    found: dict[str, list[InstanceRecord]] = defaultdict(list)
    for record in work.view.unknown:
        if record.model in models and work.liveness(record.node_id) is Liveness.LIVE:
            found[record.model].append(record)
    taken = work.used_gpus() if found else set()
    for name, records in sorted(found.items()):
        _take_unknown_of(work, models[name], records, taken)


def _take_unknown_of(
    work: Work, model: ModelRecord, records: list[InstanceRecord], taken: set[tuple[str, int]]
) -> None:
    fleet = work.fleet(model)
    members = [*fleet.fresh, *fleet.outdated, *fleet.sick, *fleet.draining]
    serving = sum(map(is_ready, members))
    for record in sorted(records, key=lambda record: (not is_ready(record), record.instance_id)):
        gpus = {(record.node_id, index) for index in held_gpus(record)}
        numbers = {"desired": model.desired_instances, "serving": serving}
        short = serving < model.desired_instances
        if model.deleted:
            work.stop(_taken_over(model, record), f"model {model.name} was deleted", numbers)
        elif short and is_ready(record) and not taken & gpus:
            reason = f"it serves on {record.node_id} and {model.name} is short of instances that do"
            adopted = _taken_over(model, record)
            work.put(adopted, Act("adopt", reason, model.name, record.instance_id, record.node_id, numbers))
            serving += 1
        elif not work.view.settling:
            why = "it cannot serve" if short else f"{model.name} needs no more instances"
            work.stop(_taken_over(model, record), f"nobody asked for it and {why}", numbers)
        taken |= gpus


def _taken_over(model: ModelRecord, record: InstanceRecord) -> InstanceRecord:
    """The worker as one of this controller's. Versions of different controllers do not compare: an equal one
    must not be taken for what was applied here, so it counts as unknown."""
    return dataclasses.replace(
        record,
        spec=model.spec,
        spec_version=0 if is_current(model, record.spec_version) else record.spec_version,
        generation=record.generation + 1,
    )


def _stop_idle_leavers(work: Work) -> None:
    """Stops instances that must go and serve nobody, so that their GPUs come free at once."""
    for model in work.live_models():
        fleet = work.fleet(model)
        stalled = stall_reason(work, model, fleet)
        served = {one.spec_version for one in work.instances(model.name) if one.served or is_ready(one)}
        for record in fleet.outdated:
            # One of the version that served before is replaced in its turn, whether it starts again or anew.
            needed = record.spec_version in served or bool(record.observed.restarts)
            useless = is_failed(record) or (is_coming(record) and not (needed and is_trusted(model, record)))
            if useless and not stalled and not is_mending(model, record):
                reason = f"spec version {record.spec_version} was replaced before the instance served"
                follows = of_roll(model.name)
                work.stop(record, reason, _versions(model, record), action="replace", follows=follows)
        for record in fleet.draining:
            if not is_ready(record):
                reason = f"{work.emptying(record)} and the instance does not serve"
                work.stop(record, reason, {}, follows=drain_of(work, record))
        for record in fleet.sick:
            if not is_ready(record):
                reason = f"{work.illness(record)} and the instance does not serve"
                work.stop(record, reason, {}, follows=NOTHING)


def _place_missing(work: Work) -> None:
    wants: dict[int, list[Want]] = defaultdict(list)
    wanted: dict[str, tuple[ModelRecord, SpecVersion]] = {}
    short: dict[str, int] = {}
    seats: dict[str, RoleSeats] = {}
    for model in work.live_models():
        fleet = work.fleet(model)
        lack = missing(work, model, fleet)
        short[model.name] = lack.short
        seats[model.name] = RoleSeats(model, lack.held)
        on_nodes = Counter(record.node_id for record in (*fleet.fresh, *fleet.outdated))
        priority = model.parsed_spec().priority
        versions = [(model.name, model.version, lack.new)]
        if lack.earlier is not None:
            name = f"{model.name} (spec version {lack.earlier.spec_version})"
            versions.append((name, lack.earlier, lack.old))
        for name, version, count in versions:
            gpus = version.parsed_spec().gpus_per_instance
            share = work.costs[model.name].memory_share
            wants[priority].append(Want(name, gpus, count, on_nodes, memory_share=share))
            wanted[name] = model, version
    plan = _place_by_priority(work.capacity(), wants, work.budget_left())
    leaving = {model.name: _leaving(work, model) for model in work.live_models()}
    for placement in plan.placements:
        model, version = wanted[placement.model]
        role = seats[model.name].take()
        replaces = _whom(leaving[model.name], role)
        _create(work, model, version, placement, role, replaces)
    for refusal in plan.refusals:
        model, version = wanted[refusal.model]
        if short[model.name] == 0:
            _make_room(work, model, refusal)
        else:
            text = f"{refusal.missing} of {model.desired_instances} instances cannot be placed"
            work.explain(model.name, f"{text}: {refusal.reason}")


def _place_by_priority(
    nodes: Sequence[NodeGpus], wants: Mapping[int, Sequence[Want]], budget_left: int | None
) -> PlacementPlan:
    """Places what is most urgent first; models of equal priority take turns."""
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    for _, wanted in sorted(wants.items()):
        plan = place(nodes, wanted, budget_left=budget_left)
        if budget_left is not None:
            kept = {node.node_id: node.residues for node in nodes}
            budget_left -= sum(
                index not in kept[one.node_id] for one in plan.placements for index in one.gpu_indexes
            )
        placements += plan.placements
        refusals += plan.refusals
        taken: dict[str, set[int]] = defaultdict(set)
        for placed in plan.placements:
            taken[placed.node_id].update(placed.gpu_indexes)
        nodes = [dataclasses.replace(node, used=node.used | taken[node.node_id]) for node in nodes]
    return PlacementPlan(tuple(placements), tuple(refusals))


def _leaving(work: Work, model: ModelRecord) -> list[InstanceRecord]:
    fleet = work.fleet(model)
    return [*fleet.lost, *fleet.draining, *fleet.sick, *fleet.outdated]


def _whom(leaving: list[InstanceRecord], role: Role) -> InstanceRecord | None:
    """Who is replaced by an instance of this role: one of the same role, if there is one."""
    found = next((one for one in leaving if one.role == role), leaving[0] if leaving else None)
    if found is not None:
        leaving.remove(found)
    return found


def _create(
    work: Work,
    model: ModelRecord,
    version: SpecVersion,
    placement: Placement,
    role: Role,
    replaces: InstanceRecord | None,
) -> None:
    instance_id = work.fresh_id(model.name)
    record = InstanceRecord(
        instance_id=instance_id,
        model=model.name,
        node_id=placement.node_id,
        gpu_indexes=placement.gpu_indexes,
        role=role,
        spec=version.spec,
        spec_version=version.rollout_version,
        observed=Observed(reason="waits for its node to start it"),
        roll=model.roll.number if model.roll.active else 0,
        role_pinned=replaces is not None and replaces.role_pinned and replaces.role == role,
    )
    numbers = dict(placement.numbers) | {"desired": model.desired_instances}
    action, reason, follows = "place", placement.reason, ""
    if replaces is not None:
        why, more, follows = _why_replaced(work, model, replaces)
        action, reason = "replace", f"for {replaces.instance_id}, {why}; {placement.reason}"
        numbers |= more
    act = Act(action, reason, model.name, instance_id, placement.node_id, numbers, follows=follows)
    work.put(record, act)


def _why_replaced(
    work: Work, model: ModelRecord, record: InstanceRecord
) -> tuple[str, dict[str, float], str]:
    """In words, in figures, and from which decision it follows."""
    node = work.nodes.get(record.node_id)
    if node is None or node.liveness is Liveness.DEAD:
        silent_s = node.silent_s if node else 0.0
        why = f"whose node {record.node_id} has been silent for {silent_s:.1f} s"
        return why, {"silent_s": silent_s}, NOTHING
    if node.emptying:
        return f"whose node {record.node_id} {node.emptying}", {}, of_node(record.node_id)
    if record.draining:
        return "which an operator drains", {}, NOTHING
    if illness := work.illness(record):
        return f"because {illness}", {}, NOTHING
    why = f"which runs spec version {record.spec_version}, not {model.spec_version}"
    return why, _versions(model, record), of_roll(model.name)


def _make_room(work: Work, model: ModelRecord, refusal: Refusal) -> None:
    """Stops one instance of an old version first, if the new version then fits and enough others serve."""
    fleet = work.fleet(model)
    settings = model.parsed_spec().roll
    allowed = settings.max_unavailable if settings.HasField("max_unavailable") else DEFAULT_MAX_UNAVAILABLE
    ready = sum(map(is_ready, (*fleet.fresh, *fleet.outdated)))
    spared = ready - 1 >= model.desired_instances - allowed
    gpus = model.parsed_spec().gpus_per_instance
    # No node has room as it is, so that only the victim's own can come to have some.
    nodes = {node.node_id: node for node in work.capacity() if node.live and not node.draining}
    fitting = [
        victim
        for victim in old_first(work, model, fleet.outdated)
        if (node := nodes.get(victim.node_id))
        and len(node.healthy - (node.used - set(held_gpus(victim)))) >= gpus
    ]
    for victim in fitting:
        if spared or not is_ready(victim):
            left = ready - is_ready(victim)
            reason = (
                f"makes room for spec version {model.spec_version}, which {refusal.reason}; "
                f"it has the least to do ({work.load(victim)} requests), {left} go on serving"
            )
            numbers = dict(refusal.numbers) | _versions(model, victim) | roll_numbers(model, fleet)
            numbers["requests"] = work.load(victim)
            work.stop(victim, reason, numbers, action="replace", follows=of_roll(model.name))
            return
    why = refusal.reason
    if fitting:
        why += (
            f"; no instance stops to make room, because {ready} of {model.desired_instances} serve and "
            f"roll.max_unavailable is {allowed}"
        )
    work.explain(
        model.name, f"spec version {model.spec_version} cannot be placed, the earlier one goes on: {why}"
    )


def _explain_failures(work: Work) -> None:
    for model in work.live_models():
        fleet = work.fleet(model)
        stalled = stall_reason(work, model, fleet)
        if model.roll.stalled:
            goes_on = "the earlier one goes on" if earlier_version(model) else "it goes no further"
            text = f"the roll to spec version {model.roll.to_version} has stalled, {goes_on}: {stalled}"
            work.explain(model.name, text)
        for record in fleet.fresh:
            if model.roll.rolling and is_doubtful(work, model, record):
                text = (
                    f"{record.instance_id} has failed a request; the roll goes on once enough have gone well"
                )
                work.explain(model.name, text)
        for record in (*fleet.fresh, *fleet.outdated, *fleet.sick, *fleet.draining):
            if is_failed(record):
                text = f"{record.instance_id} on {record.node_id} failed: {record.observed.reason}"
                if model.roll.stalled and text == stalled:
                    continue
                if fleet.outdated:
                    text += f" (spec version {record.spec_version}; the earlier one goes on)"
                work.explain(model.name, text)


def _versions(model: ModelRecord, record: InstanceRecord) -> dict[str, float]:
    return {"spec_version": record.spec_version, "wanted_spec_version": model.spec_version}
