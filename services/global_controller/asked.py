"""What an autoscaler is asked about: the models that are its own, within the bounds that count now. Pure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

from chiron.policy.decisions import ChangeRole, FleetDecision, Retire, Sleep, Start, Wake
from chiron.policy.snapshots import FleetSnapshot, ModelFleet
from chiron.policy.words import Phase, Role
from services.global_controller.bounds import Bounds

_SUPPLY = (Phase.LOADING, Phase.READY)


def asked_about(
    snapshot: FleetSnapshot, bounds: Mapping[str, Bounds], fixed: Mapping[str, int] | None = None
) -> FleetSnapshot:
    """The part of a snapshot that an autoscaler decides on.

    GPUs that other models hold are not free, and what they hold of the budget is not there for these.

    Args:
        snapshot: the cluster.
        bounds: of the autoscaled models.
        fixed: models whose number of instances is not the autoscaler's, with that number: it gets no other
            one as an answer, so that it promises them no GPUs. One that is fixed at 0 is left out.
    """
    fixed = fixed or {}
    asked, others_gpus = [], 0
    for model in snapshot.models:
        count = fixed.get(model.name)
        if model.name not in bounds or count == 0:
            others_gpus += awake_gpus(model)
        elif count is not None:
            asked.append(dataclasses.replace(model, min_instances=count, max_instances=count))
        else:
            asked.append(dataclasses.replace(model, min_instances=bounds[model.name].fewest))
    free, budget = snapshot.free_gpus, snapshot.gpu_budget
    if budget and others_gpus >= budget:
        # 0 would stand for no budget at all.
        free, budget = {}, 1
    elif budget:
        budget -= others_gpus
    return dataclasses.replace(snapshot, models=tuple(asked), free_gpus=free, gpu_budget=budget)


def supply_count(model: ModelFleet) -> int:
    """Instances that serve or are about to."""
    return sum(instance.phase in _SUPPLY for instance in model.instances)


def awake_gpus(model: ModelFleet) -> int:
    """GPUs that the model's instances hold, those that sleep left out."""
    awake = sum(instance.phase is not Phase.SLEEPING for instance in model.instances)
    return awake * model.gpus_per_instance


def wanted_by_role(model: ModelFleet, decision: FleetDecision) -> Counter[Role]:
    """How many instances of each role the model has once the decision has been carried out."""
    roles = {one.instance_id: one.role for one in model.instances if one.phase in _SUPPLY}
    more: Counter[Role] = Counter()
    for action in decision.actions:
        if action.model != model.name:
            continue
        if isinstance(action, Start):
            more[action.role] += action.count
        elif isinstance(action, Retire | Sleep):
            roles.pop(action.instance_id, None)
        elif isinstance(action, Wake) or action.instance_id in roles:
            roles[action.instance_id] = action.role
    return Counter(roles.values()) + more


def signature(model: str, decision: FleetDecision) -> Counter[str]:
    """What a decision does to a model, in kinds and numbers: the same while only the instances differ."""
    found: Counter[str] = Counter()
    for action in decision.actions:
        if action.model != model:
            continue
        if isinstance(action, Start):
            found[f"start {action.role.name.lower()}"] += action.count
        elif isinstance(action, ChangeRole):
            found[f"make {action.role.name.lower()}"] += 1
        else:
            found[type(action).__name__.lower()] += 1
    return found
