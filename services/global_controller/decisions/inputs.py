"""What was known of a model at the moment of a decision. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chiron.internal.v1 import control_pb2
from chiron.policy.decisions import GroupEstimate, ModelAssessment
from chiron.policy.fleet.backpressure import interactive_backpressure
from chiron.policy.placement import NodeGpus
from chiron.policy.snapshots import NEVER_S
from chiron.store import InstanceRecord
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet import is_ready, is_stopping
from services.global_controller.fleet_snapshot import Told
from services.global_controller.views import shown_state

MOST_GROUPS = 8
"""Request groups that inputs list; the further ones are counted."""
MOST_NODES = 8
"""Nodes with free GPUs that inputs list."""
_FAR_S = NEVER_S / 2


def decision_inputs(
    model: str,
    instances: Iterable[InstanceRecord],
    statuses: Mapping[str, cluster_pb2.InstanceStatus],
    routers: Sequence[Told],
    nodes: Sequence[NodeGpus],
    ages_s: Sequence[float],
    assessed: ModelAssessment | None,
) -> cluster_pb2.DecisionInputs:
    """The figures that a decision about the model rests on.

    Args:
        model: its name.
        instances: all on record.
        statuses: the last report of each.
        routers: their last reports.
        nodes: every node's GPUs.
        ages_s: age of the last report of each live node.
        assessed: what the autoscaler has just found of the model; None: it has no part in this.
    """
    mine = [record for record in instances if record.model == model]
    inputs = cluster_pb2.DecisionInputs(
        live_nodes=sum(node.live for node in nodes),
        silent_nodes=sum(not node.live for node in nodes),
        oldest_report_s=max([*ages_s, *(router.age_s for router in routers)], default=0.0),
    )
    _add_instances(inputs, mine, statuses)
    _add_demand(inputs, model, routers)
    slots = sum(_slots(record, statuses) for record in mine if _takes_interactive(record))
    demand = inputs.queued.interactive + inputs.running.interactive + inputs.waiting.interactive
    if mine:
        inputs.ibp = interactive_backpressure(demand, slots)
    if assessed is not None:
        for name in ("ibp", "theta", "bbp"):
            if name in assessed.numbers:
                setattr(inputs, name, assessed.numbers[name])
        if assessed.groups:
            further = len(inputs.groups) + inputs.further_groups - len(assessed.groups)
            del inputs.groups[:]
            inputs.groups.extend(map(_estimated, assessed.groups[:MOST_GROUPS]))
            inputs.further_groups = max(0, further)
    open_nodes = [node for node in nodes if node.live and not node.draining]
    free = {node.node_id: len(node.healthy - node.used) for node in open_nodes}
    inputs.gpus = sum(len(node.healthy) for node in open_nodes)
    inputs.free_gpus = sum(free.values())
    for node_id in sorted(free, key=lambda name: (-free[name], name))[:MOST_NODES]:
        if free[node_id]:
            inputs.free_gpus_on[node_id] = free[node_id]
    return inputs


def _add_instances(
    inputs: cluster_pb2.DecisionInputs,
    mine: Sequence[InstanceRecord],
    statuses: Mapping[str, cluster_pb2.InstanceStatus],
) -> None:
    counts: Counter[tuple[types_pb2.Role.ValueType, types_pb2.InstanceState.ValueType]] = Counter()
    slots: Counter[tuple[types_pb2.Role.ValueType, types_pb2.InstanceState.ValueType]] = Counter()
    for record in mine:
        key = record.role, types_pb2.INSTANCE_STATE_DRAINING if is_stopping(record) else shown_state(record)
        counts[key] += 1
        slots[key] += _slots(record, statuses)
        status = statuses.get(record.instance_id)
        if status is None or is_stopping(record):
            continue
        for total, of in ((inputs.running, status.load.running), (inputs.waiting, status.load.waiting)):
            total.interactive += of.interactive
            total.batch += of.batch
    for (role, state), count in sorted(counts.items()):
        inputs.instances.add(role=role, state=state, count=count, slots=slots[role, state])


def _add_demand(inputs: cluster_pb2.DecisionInputs, model: str, routers: Sequence[Told]) -> None:
    groups: list[tuple[float, cluster_pb2.BacklogGroup]] = []
    queues: dict[str, Told] = {}
    for router in routers:
        report = router.report
        for demand in report.demand:
            if demand.model != model:
                continue
            inputs.queued.interactive += demand.queued.interactive
            inputs.queued.batch += demand.queued.batch
            if report.interval_ms > 0:
                inputs.interactive_per_s += demand.arrived.interactive / report.interval_ms * 1e3
                inputs.batch_per_s += demand.arrived.batch / report.interval_ms * 1e3
            groups += [_group(one, router.age_s) for one in demand.batch_groups]
        queue = report.batch_queue
        best = queues.get(queue.queue_id)
        if queue.queue_id and (best is None or _read_s(router) < _read_s(best)):
            queues[queue.queue_id] = router
    for router in queues.values():
        for queued in router.report.batch_queue.models:
            if queued.model == model:
                inputs.batch_items += sum(group.requests for group in queued.groups)
                groups += [_group(one, router.age_s) for one in queued.groups]
    groups.sort(key=lambda pair: pair[0])
    inputs.groups.extend(group for _, group in groups[:MOST_GROUPS])
    inputs.further_groups = max(0, len(groups) - MOST_GROUPS)


def _read_s(router: Told) -> float:
    return router.age_s + router.report.batch_queue.age_ms / 1e3


def _group(group: control_pb2.RequestGroup, age_s: float) -> tuple[float, cluster_pb2.BacklogGroup]:
    shown = cluster_pb2.BacklogGroup(requests=group.requests)
    if not group.HasField("deadline_in_ms"):
        return NEVER_S, shown
    shown.deadline_in_s = group.deadline_in_ms / 1e3 - age_s
    return shown.deadline_in_s, shown


def _estimated(group: GroupEstimate) -> cluster_pb2.BacklogGroup:
    shown = cluster_pb2.BacklogGroup(requests=group.requests)
    if group.deadline_in_s < _FAR_S:
        shown.deadline_in_s = group.deadline_in_s
    if group.done_in_s < _FAR_S:
        shown.finish_in_s = group.done_in_s
    return shown


def _takes_interactive(record: InstanceRecord) -> bool:
    return is_ready(record) and not is_stopping(record) and record.role != types_pb2.ROLE_BATCH


def _slots(record: InstanceRecord, statuses: Mapping[str, cluster_pb2.InstanceStatus]) -> int:
    status = statuses.get(record.instance_id)
    return status.load.batch_size if status is not None and is_ready(record) else 0
