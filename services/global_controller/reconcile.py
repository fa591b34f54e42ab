"""From what is wanted and what is seen to what is written next. Pure: view in, plan out.

Applied again and again it comes to rest: a view in which nothing differs from what is wanted gives an empty
plan. In each pass the order is: deleted models stop; unknown workers are adopted or stopped; what serves
nobody and must go anyway goes; missing instances are placed; what is then superfluous stops (retire.py).
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from chiron.policy.placement import NodeGpus, Placement, PlacementPlan, Refusal, Want, place
from chiron.store import InstanceRecord, ModelRecord, Observed
from services.global_controller.fleet import (
    Fleet,
    Work,
    held_gpus,
    is_coming,
    is_current,
    is_failed,
    is_ready,
    is_stopping,
)
from services.global_controller.retire import retire
from services.global_controller.view import Act, ClusterView, Liveness, Plan


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
        _stop_idle_leavers(work)
    _place_missing(work)
    if not view.settling:
        for model in work.live_models():
            retire(work, model)
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
    members = [*fleet.fresh, *fleet.outdated, *fleet.draining]
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
        for record in fleet.outdated:
            if not is_ready(record):
                reason = f"spec version {record.spec_version} was replaced before the instance served"
                work.stop(record, reason, _versions(model, record), action="replace")
        for record in fleet.draining:
            if not is_ready(record):
                why = work.nodes[record.node_id].emptying
                work.stop(record, f"{record.node_id} {why} and the instance does not serve", {})


def _place_missing(work: Work) -> None:
    wants: dict[int, list[Want]] = defaultdict(list)
    short: dict[str, int] = {}
    for model in work.live_models():
        fleet = work.fleet(model)
        held = len(fleet.fresh) + len(fleet.outdated)
        if work.view.settling:
            # A leaving agent has said itself that its instances end; that is no matter of who is yet to join.
            staying = [record for record in fleet.draining if not work.nodes[record.node_id].leaving]
            held += len(staying) + len(fleet.lost)
        short[model.name] = max(0, model.desired_instances - held)
        surge = int(short[model.name] == 0 and _may_roll(work, model, fleet))
        on_nodes = Counter(record.node_id for record in (*fleet.fresh, *fleet.outdated))
        spec = model.parsed_spec()
        want = Want(model.name, spec.gpus_per_instance, short[model.name] + surge, on_nodes)
        wants[spec.priority].append(want)
    models = {model.name: model for model in work.live_models()}
    plan = _place_by_priority(work.capacity(), wants)
    leaving = {name: _leaving(work.fleet(model)) for name, model in models.items()}
    for placement in plan.placements:
        replaces = leaving[placement.model].pop(0) if leaving[placement.model] else None
        _create(work, models[placement.model], placement, replaces)
    for refusal in plan.refusals:
        model = models[refusal.model]
        if short[refusal.model] == 0:
            _make_room(work, model, refusal)
        else:
            text = f"{refusal.missing} of {model.desired_instances} instances cannot be placed"
            work.explain(model.name, f"{text}: {refusal.reason}")


def _place_by_priority(nodes: Sequence[NodeGpus], wants: Mapping[int, Sequence[Want]]) -> PlacementPlan:
    """Places what is most urgent first; models of equal priority take turns."""
    placements: list[Placement] = []
    refusals: list[Refusal] = []
    for _, wanted in sorted(wants.items()):
        plan = place(nodes, wanted)
        placements += plan.placements
        refusals += plan.refusals
        taken: dict[str, set[int]] = defaultdict(set)
        for placed in plan.placements:
            taken[placed.node_id].update(placed.gpu_indexes)
        nodes = [dataclasses.replace(node, used=node.used | taken[node.node_id]) for node in nodes]
    return PlacementPlan(tuple(placements), tuple(refusals))


def _may_roll(work: Work, model: ModelRecord, fleet: Fleet) -> bool:
    """Whether the next instance of an old version may be replaced: one at a time, and only while the new
    version proves itself."""
    return bool(
        not work.view.settling
        and fleet.outdated
        and not fleet.stopping
        and not any(is_coming(record) or is_failed(record) for record in fleet.fresh)
        and len(fleet.fresh) + len(fleet.outdated) <= model.desired_instances
    )


def _leaving(fleet: Fleet) -> list[InstanceRecord]:
    return [*fleet.lost, *fleet.draining, *fleet.outdated]


def _create(work: Work, model: ModelRecord, placement: Placement, replaces: InstanceRecord | None) -> None:
    instance_id = work.fresh_id(model.name)
    record = InstanceRecord(
        instance_id=instance_id,
        model=model.name,
        node_id=placement.node_id,
        gpu_indexes=placement.gpu_indexes,
        role=model.parsed_spec().role,
        spec=model.spec,
        spec_version=model.spec_version,
        observed=Observed(reason="waits for its node to start it"),
    )
    numbers = dict(placement.numbers) | {"desired": model.desired_instances}
    action, reason = "place", placement.reason
    if replaces is not None:
        why, more = _why_replaced(work, model, replaces)
        action, reason = "replace", f"for {replaces.instance_id}, {why}; {placement.reason}"
        numbers |= more
    work.put(record, Act(action, reason, model.name, instance_id, placement.node_id, numbers))


def _why_replaced(work: Work, model: ModelRecord, record: InstanceRecord) -> tuple[str, dict[str, float]]:
    node = work.nodes.get(record.node_id)
    if node is None or node.liveness is Liveness.DEAD:
        silent_s = node.silent_s if node else 0.0
        return f"whose node {record.node_id} has been silent for {silent_s:.1f} s", {"silent_s": silent_s}
    if node.emptying:
        return f"whose node {record.node_id} {node.emptying}", {}
    versions = _versions(model, record)
    return f"which runs spec version {record.spec_version}, not {model.spec_version}", versions


def _make_room(work: Work, model: ModelRecord, refusal: Refusal) -> None:
    """Stops one instance of an old version first, if the new version then fits."""
    fleet = work.fleet(model)
    gpus = model.parsed_spec().gpus_per_instance
    # No node has room as it is, so that only the victim's own can come to have some.
    nodes = {node.node_id: node for node in work.capacity() if node.live and not node.draining}
    for victim in sorted(fleet.outdated, key=lambda record: (work.load(record), record.instance_id)):
        node = nodes.get(victim.node_id)
        if node and len(node.healthy - (node.used - set(held_gpus(victim)))) >= gpus:
            reason = (
                f"makes room for spec version {model.spec_version}, which {refusal.reason}; "
                f"it has the least to do ({work.load(victim)} requests)"
            )
            numbers = dict(refusal.numbers) | _versions(model, victim) | {"requests": work.load(victim)}
            work.stop(victim, reason, numbers, action="replace")
            return
    work.explain(
        model.name,
        f"spec version {model.spec_version} cannot be placed, the earlier one goes on: {refusal.reason}",
    )


def _explain_failures(work: Work) -> None:
    for model in work.live_models():
        fleet = work.fleet(model)
        for record in (*fleet.fresh, *fleet.outdated, *fleet.draining):
            if is_failed(record):
                text = f"{record.instance_id} on {record.node_id} failed: {record.observed.reason}"
                if fleet.outdated:
                    text += f" (spec version {record.spec_version}; the earlier one goes on)"
                work.explain(model.name, text)


def _versions(model: ModelRecord, record: InstanceRecord) -> dict[str, float]:
    return {"spec_version": record.spec_version, "wanted_spec_version": model.spec_version}
