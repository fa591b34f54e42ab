"""The cluster as operators see it: ClusterSnapshot and its parts, from state and registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord, ModelRecord, NodeRecord, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet import is_ready, is_stopping, is_to_sleep, occupied_gpus
from services.global_controller.registry import Registry, waiting_items
from services.global_controller.roll_view import roll_status
from services.global_controller.view import Liveness

_ALIVE = (Liveness.LIVE, Liveness.JOINING, Liveness.SILENT)


def shown_state(record: InstanceRecord) -> types_pb2.InstanceState.ValueType:
    """The observed state; DRAINING where the instance serves but is to stop or to sleep."""
    if (is_stopping(record) or is_to_sleep(record)) and is_ready(record):
        return types_pb2.INSTANCE_STATE_DRAINING
    return record.observed.state


def instance_status(
    record: InstanceRecord, reported: cluster_pb2.InstanceStatus | None = None
) -> cluster_pb2.InstanceStatus:
    """One instance, with the figures of the last report of it."""
    shown = cluster_pb2.InstanceStatus(
        instance_id=record.instance_id,
        model=record.model,
        node_id=record.node_id,
        gpu_indexes=occupied_gpus(record),
        role=record.role,
        state=shown_state(record),
        reason=record.observed.reason,
        generation=record.generation,
        incarnation=record.observed.incarnation,
        address=record.observed.address,
        restarts=record.observed.restarts,
        spec_version=record.spec_version,
        role_pinned=record.role_pinned,
    )
    if reported is not None:
        if reported.state == shown.state:
            shown.state_age_ms = reported.state_age_ms
        shown.load_age_ms = reported.load_age_ms
        shown.load.CopyFrom(reported.load)
        if reported.HasField("kept"):
            shown.kept.CopyFrom(reported.kept)
        if reported.HasField("local"):
            shown.local.CopyFrom(reported.local)
    if shown.HasField("local") or record.batch_size or record.step_token_budget:
        # What is set counts from when it is on record, the agent's word of it follows.
        shown.local.set_batch_size, shown.local.set_step_token_budget = (
            record.batch_size,
            record.step_token_budget,
        )
    return shown


def model_status(
    record: ModelRecord,
    snapshot: Snapshot,
    dead: Collection[str],
    reasons: Mapping[str, str],
    autoscale: cluster_pb2.AutoscaleStatus | None = None,
) -> cluster_pb2.ModelStatus:
    """One model; what was last heard of nodes that are `dead` counts as ready no more.

    `reasons` are the last reconciling pass's, `autoscale` how the autoscaler stands with it.
    """
    instances = [one for one in snapshot.instances.values() if one.model == record.name]
    ready = sum(
        is_ready(instance)
        and not is_stopping(instance)
        and not is_to_sleep(instance)
        and instance.node_id not in dead
        for instance in instances
    )
    return cluster_pb2.ModelStatus(
        spec=record.parsed_spec(),
        spec_version=record.spec_version,
        desired_instances=record.desired_instances,
        ready_instances=ready,
        reason=reasons.get(record.name, ""),
        roll=roll_status(record, instances),
        autoscale=autoscale,
    )


def node_status(record: NodeRecord, registry: Registry) -> cluster_pb2.NodeStatus:
    """One node."""
    view = registry.view(record)
    link = registry.agents.get(record.node_id)
    cordoned = {gpu.uuid for gpu in link.gpus if gpu.cordoned} if link else set()
    return cluster_pb2.NodeStatus(
        node_id=record.node_id,
        host=record.host,
        gpus=[
            cluster_pb2.Gpu(
                index=gpu.index,
                uuid=gpu.uuid,
                name=gpu.name,
                memory_bytes=gpu.memory_bytes,
                healthy=gpu.healthy,
                reason=gpu.reason,
                cordoned=gpu.uuid in cordoned,
            )
            for gpu in record.gpus
        ],
        live=view.liveness in _ALIVE,
        draining=bool(view.emptying),
        report_age_ms=view.silent_s * 1000,
        agent_version=record.agent_version,
        problems=link.problems if link else (),
        sleep_host_bytes=link.sleep_host_bytes if link else 0,
    )


def cluster_snapshot(
    snapshot: Snapshot,
    registry: Registry,
    term: int,
    reasons: Mapping[str, str],
    autoscale: Callable[[ModelRecord], cluster_pb2.AutoscaleStatus | None] = lambda _: None,
) -> cluster_pb2.ClusterSnapshot:
    """Everything, sorted by name. `autoscale`: how the autoscaler stands with a model."""
    statuses = registry.statuses()
    dead = registry.dead(snapshot.nodes.values())
    known = sorted(snapshot.instances.values(), key=lambda one: (one.model, one.instance_id))
    unknown = [one for one in registry.unknown() if one.instance_id not in snapshot.instances]
    return cluster_pb2.ClusterSnapshot(
        revision=snapshot.revision,
        term=term,
        models=[
            model_status(model, snapshot, dead, reasons, autoscale(model))
            for _, model in sorted(snapshot.models.items())
            if not model.deleted
        ],
        nodes=[node_status(node, registry) for _, node in sorted(snapshot.nodes.items())],
        instances=[instance_status(one, statuses.get(one.instance_id)) for one in (*known, *unknown)],
        routers=[
            cluster_pb2.RouterStatus(
                router_id=link.router_id,
                address=link.address,
                report_age_ms=registry.age_s(link) * 1000,
                queued=link.queued,
                ejected=link.report.ejected,
                batch_queue=_batch_queue(link.report),
            )
            for _, link in sorted(registry.routers.items())
        ],
    )


def _batch_queue(report: control_pb2.RouterReport) -> cluster_pb2.BatchQueueStatus | None:
    if not report.HasField("batch_queue"):
        return None
    queue = report.batch_queue
    return cluster_pb2.BatchQueueStatus(
        queue_id=queue.queue_id, waiting=waiting_items(report), age_ms=queue.age_ms
    )
