"""Short ways to write down a cluster for the reconciler."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

from chiron.internal.v1 import control_pb2
from chiron.store import GpuRecord, InstanceRecord, ModelRecord, NodeRecord, Observed, Roll
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.reconcile import reconcile
from services.global_controller.view import ClusterView, Health, Liveness, NodeView, Plan

PENDING = types_pb2.INSTANCE_STATE_PENDING
LOADING = types_pb2.INSTANCE_STATE_LOADING
READY = types_pb2.INSTANCE_STATE_READY
FAILED = types_pb2.INSTANCE_STATE_FAILED
DRAINING = types_pb2.INSTANCE_STATE_DRAINING
RUNNING = control_pb2.DESIRED_STATE_RUNNING
STOPPED = control_pb2.DESIRED_STATE_STOPPED


def model(
    name: str = "chat",
    desired: int = 1,
    *,
    gpus: int = 1,
    version: int = 1,
    rollout: int | None = None,
    deleted: bool = False,
    priority: int = 0,
    **roll_settings: float,
) -> ModelRecord:
    """An applied model; `rollout` is the version whose workers serve it (the present one)."""
    spec = cluster_pb2.ModelSpec(
        name=name,
        gpus_per_instance=gpus,
        engine="sim",
        role=types_pb2.ROLE_MIXED,
        priority=priority,
        revision=f"r{version}",
        roll=cluster_pb2.RollSettings(**roll_settings),  # type: ignore[arg-type]
    )
    return ModelRecord(
        name, spec.SerializeToString(), version, version if rollout is None else rollout, desired, deleted
    )


def rolled(
    old: ModelRecord, new: ModelRecord, *, back: bool = False, stalled: str = "", number: int = 1
) -> ModelRecord:
    """A model whose roll from one version to another has begun; `back`: a failure leads back by itself."""
    state = cluster_pb2.ROLL_STATE_STALLED if stalled else cluster_pb2.ROLL_STATE_ROLLING
    return dataclasses.replace(
        new,
        history=(old.version, *old.history),
        roll=Roll(number, state, old.spec_version, new.spec_version, back, stalled),
    )


def node(
    name: str,
    gpus: int = 2,
    *,
    liveness: Liveness = Liveness.LIVE,
    draining: bool = False,
    unhealthy: tuple[int, ...] = (),
) -> NodeView:
    """A node with `gpus` GPUs."""
    records = tuple(GpuRecord(index, healthy=index not in unhealthy) for index in range(gpus))
    silent_s = 7.5 if liveness is Liveness.DEAD else 0.5
    return NodeView(NodeRecord(name, "127.0.0.1", records, draining=draining), liveness, silent_s)


def instance(
    name: str,
    node_id: str,
    *gpus: int,
    of: str = "chat",
    state: types_pb2.InstanceState.ValueType = READY,
    reason: str = "",
    version: int = 1,
    desired: control_pb2.DesiredState.ValueType = RUNNING,
    roll: int = 0,
    restarts: int = 0,
    served: bool = False,
) -> InstanceRecord:
    """An instance on the given GPUs (0 when none are named)."""
    return InstanceRecord(
        instance_id=name,
        model=of,
        node_id=node_id,
        gpu_indexes=gpus or (0,),
        role=types_pb2.ROLE_MIXED,
        spec=b"",
        spec_version=version,
        desired=desired,
        observed=Observed(
            state=state, reason=reason, incarnation=1, address="127.0.0.1:1", restarts=restarts
        ),
        roll=roll,
        served=served,
    )


def cluster(
    *parts: ModelRecord | NodeView | InstanceRecord,
    unknown: tuple[InstanceRecord, ...] = (),
    load: dict[str, int] | None = None,
    settling: bool = False,
    hold_s: float = 0.0,
    health: dict[str, Health] | None = None,
) -> ClusterView:
    """A view made of its parts."""
    return ClusterView(
        models=tuple(part for part in parts if isinstance(part, ModelRecord)),
        instances=tuple(part for part in parts if isinstance(part, InstanceRecord)),
        nodes=tuple(part for part in parts if isinstance(part, NodeView)),
        unknown=unknown,
        load=load or {},
        settling=settling,
        hold_s=hold_s,
        health=health or {},
    )


def numbered() -> Callable[[str], str]:
    """Ids new-1, new-2, ..."""
    count = itertools.count(1)
    return lambda _: f"new-{next(count)}"


def decide(view: ClusterView) -> Plan:
    """One pass, checked to be all that is needed: a second one on its result changes nothing."""
    ids = numbered()
    plan = reconcile(view, ids)
    again = reconcile(after(view, plan), ids)
    assert (again.puts, again.models) == ((), ())
    return plan


def after(view: ClusterView, plan: Plan) -> ClusterView:
    """The view once the plan is written down."""
    written = {record.instance_id: record for record in (*view.instances, *plan.puts)}
    unknown = tuple(one for one in view.unknown if one.instance_id not in written)
    models = tuple(({one.name: one for one in view.models} | {one.name: one for one in plan.models}).values())
    return dataclasses.replace(view, models=models, instances=tuple(written.values()), unknown=unknown)


def started(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Where the plan starts instances, by id: node and GPUs."""
    return {
        one.instance_id: (one.node_id, one.gpu_indexes)
        for one in plan.puts
        if one.desired == RUNNING and one.observed.state == PENDING
    }


def stopped(plan: Plan) -> set[str]:
    """Ids of the instances that the plan stops."""
    return {one.instance_id for one in plan.puts if one.desired == STOPPED}


def nothing(plan: Plan) -> bool:
    """Whether the plan changes nothing."""
    return not plan.puts and not plan.models and not plan.acts
