"""What keeps an autoscaler's decisions from being carried out, model by model. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from chiron.policy.decisions import Action, ChangeRole, Retire, Sleep, Start, Wake
from chiron.store import InstanceRecord, ModelRecord
from chiron.v1 import cluster_pb2
from services.global_controller.bounds import Bounds
from services.global_controller.fleet import is_failed, is_stopping, is_to_sleep
from services.global_controller.view import ClusterView, Liveness

State: TypeAlias = cluster_pb2.AutoscaleState.ValueType
_UP, _DOWN = (Start, Wake), (Retire, Sleep)


@dataclass(frozen=True, slots=True)
class Restraint:
    """Of one model; each text says why, and is empty where nothing is kept."""

    nothing: str = ""
    """Why nothing at all is carried out."""
    state: State = cluster_pb2.AUTOSCALE_STATE_ACTIVE
    count: str = ""
    """Why the number of instances stays."""
    down: str = ""
    """Why nothing goes."""
    up: str = ""
    """Why nothing is added for now."""
    roles: Collection[str] = ()
    """Ids of the instances whose roles stay."""

    @property
    def own_count(self) -> bool:
        """Whether the number of instances is the autoscaler's to set."""
        return not (self.nothing or self.count)

    def against(self, action: Action) -> str:
        """Why the action is not carried out; empty: it is."""
        if self.nothing:
            return self.nothing
        if isinstance(action, ChangeRole):
            return "an operator has set the role" if action.instance_id in self.roles else ""
        if self.count:
            return self.count
        return self.up if isinstance(action, _UP) else self.down if isinstance(action, _DOWN) else ""

    @property
    def shown(self) -> State:
        """The state that operators see."""
        if self.nothing:
            return self.state
        if self.count:
            return cluster_pb2.AUTOSCALE_STATE_PINNED
        return cluster_pb2.AUTOSCALE_STATE_HOLDING if self.down else cluster_pb2.AUTOSCALE_STATE_ACTIVE

    @property
    def reasons(self) -> list[str]:
        """Everything that is kept, for people."""
        return list(filter(None, [self.nothing, self.count, self.down, self.up]))


def operators_restraint(model: ModelRecord) -> Restraint:
    """What operators have said about a model."""
    orders = model.autoscaling
    if orders.paused:
        why = f"paused by an operator{f' ({orders.pause_reason})' if orders.pause_reason else ''}"
        return Restraint(why, cluster_pb2.AUTOSCALE_STATE_PAUSED)
    if orders.pinned_instances is not None:
        return Restraint(count=f"an operator pinned {orders.pinned_instances}")
    return Restraint()


def restrained(bounds: Bounds, model: ModelRecord, restraint: Restraint) -> Bounds:
    """The bounds within which the model may be moved: the number that an operator has set, if one has."""
    pinned = model.autoscaling.pinned_instances
    return Bounds(pinned, pinned) if restraint.count and pinned is not None else bounds


def sift(
    actions: Sequence[Action], restraints: Mapping[str, Restraint]
) -> tuple[list[Action], list[tuple[Action, str]]]:
    """The actions that may be carried out, and the others with what keeps them; no model without a restraint
    may be changed."""
    allowed: list[Action] = []
    kept: list[tuple[Action, str]] = []
    for action in actions:
        restraint = restraints.get(action.model, Restraint("it is not autoscaled any more"))
        if why := restraint.against(action):
            kept.append((action, why))
        else:
            allowed.append(action)
    return allowed, kept


def pinned_roles(instances: Sequence[InstanceRecord]) -> frozenset[str]:
    """Ids of the instances whose role an operator has set."""
    return frozenset(record.instance_id for record in instances if record.role_pinned)


def temporary_surplus(view: ClusterView) -> Mapping[str, int]:
    """Model → instances that run beyond those wanted while others are replaced: they are no surplus."""
    present = present_instances(view)
    beyond = {model.name: present[model.name] - model.desired_instances for model in view.models}
    return {name: count for name, count in beyond.items() if count > 0}


def present_instances(view: ClusterView) -> Counter[str]:
    """Model → instances that serve or are about to, wherever they are."""
    there = {one.record.node_id for one in view.nodes if one.liveness is not Liveness.DEAD}
    return Counter(
        record.model
        for record in view.instances
        if record.node_id in there
        and not is_stopping(record)
        and not is_to_sleep(record)
        and not is_failed(record)
    )


def late_telemetry(
    instance_ages_s: Sequence[float],
    routers: Sequence[tuple[float, float]],
    *,
    late_s: float,
    share: float = 0.25,
) -> str:
    """Why what is known of a model is too old to take anything away; empty: it is not.

    Args:
        instance_ages_s: of the reports of its instances that serve.
        routers: of all routers' reports, each with the age from which it is late.
        late_s: age from which an instance's report is late.
        share: of the instances whose reports may be late.
    """
    if not routers:
        return "no router reports what is asked for"
    late = [age_s for age_s, late_from_s in routers if age_s > late_from_s]
    if late:
        return f"{len(late)} of {len(routers)} routers have not reported for {max(late):.1f} s"
    late = [age_s for age_s in instance_ages_s if age_s > late_s]
    if late and len(late) >= share * len(instance_ages_s):
        return f"reports of {len(late)} of {len(instance_ages_s)} instances are {max(late):.1f} s old"
    return ""
