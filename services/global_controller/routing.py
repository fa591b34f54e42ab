"""The routing table: how it follows from the state, its epochs, and the deltas between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord, ModelRecord, Snapshot
from chiron.v1 import access_pb2, cluster_pb2, types_pb2
from services.global_controller.fleet import is_asleep, is_failed, is_ready, is_stopping, is_to_sleep
from services.global_controller.phases import OnItsWay
from services.global_controller.registry import Registry
from services.global_controller.routed_access import NOBODY, AccessEntries
from services.global_controller.views import shown_state

DELTAS_KEPT = 32
"""How many epochs a router may lie behind before it gets a snapshot instead."""
_EPOCHS_PER_TERM = 1 << 20
"""Epochs start at term times this, so that no two controllers' epochs meet."""
_ROUTED_STATES = (
    types_pb2.INSTANCE_STATE_LOADING,
    types_pb2.INSTANCE_STATE_READY,
    types_pb2.INSTANCE_STATE_DRAINING,
    types_pb2.INSTANCE_STATE_SLEEPING,
)

When = Callable[[str], OnItsWay | None]
"""Instance id → where it stands on its way to serve; None: it is on none."""
_NOBODY_STARTS: Mapping[str, str] = {}

_STARTS = "none of its instances runs: one starts as soon as a request waits"

Entries = tuple[dict[str, control_pb2.RoutedModel], dict[str, control_pb2.RoutedInstance]]
"""Models by name and instances by id."""
_Entry = TypeVar(
    "_Entry", control_pb2.RoutedModel, control_pb2.RoutedInstance, access_pb2.Tenant, control_pb2.RoutedKey
)


def entries(
    snapshot: Snapshot,
    registry: Registry,
    reasons: Mapping[str, str],
    on_demand: Mapping[str, str] = _NOBODY_STARTS,
    patient: Collection[str] = (),
) -> Entries:
    """What routers should know, without what changes all the time: loads come fresher from workers, and for
    how long instances have been on their way is added as a table is sent.

    Workers of models that nobody has applied to this controller are routed too, so that a controller that
    lost its memory does not end what serves. A dead node's instance stays until it is given up.

    Args:
        snapshot: the durable state.
        registry: who is heard.
        reasons: for each model that has not what it should have, what stands in the way.
        on_demand: models of which an instance starts when requests wait → why none would start now; empty:
            one would.
        patient: those of `on_demand` whose requests wait also while what is wanted has no place: it may come
            free, and `on_demand` says when it has been waited for in vain.
    """
    unknown = [one for one in registry.unknown() if one.instance_id not in snapshot.instances]
    by_model: dict[str, list[InstanceRecord]] = {}
    for instance in (*snapshot.instances.values(), *unknown):
        by_model.setdefault(instance.model, []).append(instance)
    dead = registry.dead(snapshot.nodes.values())
    models = {
        model.name: _model(
            model,
            by_model.get(model.name, []),
            dead,
            reasons.get(model.name, ""),
            on_demand.get(model.name),
            patient=model.name in patient,
        )
        for model in snapshot.models.values()
        if not model.deleted
    }
    for instance in unknown:
        if instance.model not in snapshot.models:
            models[instance.model] = control_pb2.RoutedModel(name=instance.model)
    instances = {
        instance.instance_id: _instance(instance)
        for group in by_model.values()
        for instance in group
        if instance.observed.address
        and instance.observed.state in _ROUTED_STATES
        and not is_asleep(instance)
        and not (is_stopping(instance) and instance.node_id in dead)
    }
    return models, instances


def belongs_to(epoch: int, term: int) -> bool:
    """Whether a table of this epoch came from the controller of this term."""
    return epoch // _EPOCHS_PER_TERM == term


class RoutingTables:
    """The present table, and the last deltas that led to it."""

    def __init__(self, term: int, when: When = lambda _: None) -> None:
        """An empty table.

        Args:
            term: of the controller.
            when: tells, as a table is sent, where an instance stands that is on its way.
        """
        self._term = term
        self._when = when
        self.epoch = term * _EPOCHS_PER_TERM + 1
        self._models: dict[str, control_pb2.RoutedModel] = {}
        self._instances: dict[str, control_pb2.RoutedInstance] = {}
        self._access = NOBODY
        self._deltas: deque[control_pb2.RoutingDelta] = deque(maxlen=DELTAS_KEPT)

    def update(self, new: Entries, access: AccessEntries = NOBODY) -> bool:
        """Moves to a new table; True when it differs, and then the epoch is one higher."""
        models, instances = new
        tenants, keys = access
        delta = control_pb2.RoutingDelta(
            epoch=self.epoch + 1,
            models=_changed(self._models, models),
            removed_models=sorted(self._models.keys() - models.keys()),
            instances=_changed(self._instances, instances),
            removed_instance_ids=sorted(self._instances.keys() - instances.keys()),
        )
        if access is not self._access:
            delta.tenants.extend(_changed(self._access.tenants, tenants))
            delta.removed_tenants.extend(sorted(self._access.tenants.keys() - tenants.keys()))
            delta.keys.extend(_changed(self._access.keys, keys))
            delta.removed_key_ids.extend(sorted(self._access.keys.keys() - keys.keys()))
        if len(delta.ListFields()) == 1:
            return False
        self.epoch = delta.epoch
        self._models, self._instances = models, instances
        self._access = access
        self._deltas.append(delta)
        return True

    def snapshot(self, loads: Mapping[str, cluster_pb2.InstanceLoad]) -> control_pb2.RoutingTable:
        """The whole table, with the last reported loads."""
        table = control_pb2.RoutingTable(
            epoch=self.epoch,
            term=self._term,
            models=[self._models[name] for name in sorted(self._models)],
            instances=[self._instances[key] for key in sorted(self._instances)],
            tenants=[self._access.tenants[name] for name in sorted(self._access.tenants)],
            keys=[self._access.keys[key_id] for key_id in sorted(self._access.keys)],
        )
        for instance in table.instances:
            if instance.instance_id in loads:
                instance.load.CopyFrom(loads[instance.instance_id])
        self._time(table.models)
        return table

    def delta_after(self, epoch: int) -> control_pb2.RoutingDelta | None:
        """The delta to the next epoch; None when it is no longer kept."""
        index = len(self._deltas) - (self.epoch - epoch)
        if not 0 <= index < len(self._deltas):
            return None
        delta = self._deltas[index]
        if any(model.coming for model in delta.models):
            # What is kept names no times, so that only the state of things makes a delta.
            kept, delta = delta, control_pb2.RoutingDelta()
            delta.CopyFrom(kept)
            self._time(delta.models)
        return delta

    def _time(self, models: Iterable[control_pb2.RoutedModel]) -> None:
        for model in models:
            for one in model.coming:
                if (stands := self._when(one.instance_id)) is not None:
                    one.loading_ms, one.ready_in_ms = 1e3 * stands.since_s, 1e3 * stands.ready_in_s
            model.coming.sort(key=lambda one: one.ready_in_ms)


def _changed(before: Mapping[str, _Entry], after: Mapping[str, _Entry]) -> list[_Entry]:
    return [after[key] for key in sorted(after) if before.get(key) != after[key]]


def _model(
    model: ModelRecord,
    instances: list[InstanceRecord],
    dead: frozenset[str],
    blocked: str,
    unstartable: str | None,
    *,
    patient: bool,
) -> control_pb2.RoutedModel:
    """`unstartable`: why no instance would start although requests waited; None: none ever does so."""
    spec = model.parsed_spec()
    kept = [one for one in instances if not is_stopping(one)]
    wanted = [one for one in kept if not is_to_sleep(one)]
    routed = control_pb2.RoutedModel(
        name=model.name,
        slo_defaults=spec.slo_defaults,
        adapters=[adapter.name for adapter in spec.adapters],
        spec_version=model.spec_version,
        rollout_version=model.rollout_version,
        kept_versions=sorted({one.spec_version for one in kept if not is_failed(one)}),
        on_demand=unstartable is not None,
        tool_parser=spec.tool_parser,
    )
    if any(is_ready(one) for one in wanted):
        return routed
    on_their_way = [one for one in wanted if not is_failed(one) and one.node_id not in dead]
    routed.coming.extend(map(_coming, sorted(on_their_way, key=lambda one: one.instance_id)))
    coming = sum(not is_failed(one) for one in wanted)
    # GPUs that an instance of the same model is about to leave are where the next one will start.
    leaving = sum(is_stopping(one) and one.node_id not in dead for one in instances)
    if model.desired_instances == 0 and unstartable is not None:
        routed.reason, routed.failed = unstartable or _STARTS, bool(unstartable)
    elif model.desired_instances == 0:
        routed.reason, routed.failed = "no instance is wanted: it is scaled to 0", True
    elif coming or (leaving and not any(map(is_failed, wanted))):
        routed.reason = blocked or f"{coming or leaving} of {model.desired_instances} instances starting"
    else:
        # Without a reason the reconciler has not come to it yet.
        waits = patient and not unstartable and not any(map(is_failed, wanted))
        routed.reason, routed.failed = blocked, bool(blocked) and not waits
    return routed


def _coming(record: InstanceRecord) -> control_pb2.ComingInstance:
    """An instance that does not serve yet; how long that takes is told as the table is sent."""
    return control_pb2.ComingInstance(
        instance_id=record.instance_id, state=record.observed.state, reason=record.observed.reason
    )


def _instance(record: InstanceRecord) -> control_pb2.RoutedInstance:
    return control_pb2.RoutedInstance(
        instance_id=record.instance_id,
        incarnation=record.observed.incarnation,
        model=record.model,
        address=record.observed.address,
        role=record.role,
        state=shown_state(record),
        spec_version=record.spec_version,
    )
