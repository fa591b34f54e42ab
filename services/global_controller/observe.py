"""What an agent's messages change in the cluster's state. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from chiron.internal.v1 import control_pb2
from chiron.store import GpuRecord, InstanceRecord, Key, NodeRecord, Observed, Record, Snapshot
from chiron.v1 import cluster_pb2, types_pb2
from services.global_controller.fleet import is_stopping

Sent = Mapping[str, tuple[int, int]]
"""What a stream has told its agent: instance id → (generation, first DesiredNode.revision that held it)."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What one report says."""

    puts: tuple[Record, ...]
    deletes: tuple[Key, ...]
    unknown: tuple[InstanceRecord, ...]
    """Workers that the store does not know."""


def observe_hello(snapshot: Snapshot, hello: control_pb2.AgentHello) -> NodeRecord | None:
    """The node's record to write; None when it stands already."""
    before = snapshot.nodes.get(hello.node_id)
    record = NodeRecord(
        node_id=hello.node_id,
        host=hello.host,
        gpus=_gpus(hello.gpus),
        agent_version=hello.agent_version,
        draining=before.draining if before else False,
    )
    return None if record == before else record


def has_left(report: control_pb2.AgentReport) -> bool:
    """Whether the node's agent is stopping and nothing runs there any more."""
    return report.leaving and all(
        one.status.state == types_pb2.INSTANCE_STATE_STOPPED for one in report.instances
    )


def observe_report(
    snapshot: Snapshot,
    node_id: str,
    report: control_pb2.AgentReport,
    sent: Sent,
    there: Sequence[InstanceRecord] | None = None,
) -> Observation:
    """Compares a report with the state; only differences are written.

    An instance that the report leaves out counts as gone (or, where it should run, as not yet started) once
    the agent has taken up what the controller wants of it now; before, the report may just be older. A node
    that has left in good order is forgotten with all that was placed there.

    Args:
        snapshot: the state.
        node_id: whose report it is.
        report: the newest one.
        sent: what its agent has been told.
        there: the instances on record at the node; None: they are looked for.
    """
    if there is None:
        there = [record for record in snapshot.instances.values() if record.node_id == node_id]
    puts: list[Record] = []
    deletes: list[Key] = []
    unknown: list[InstanceRecord] = []
    node = snapshot.nodes.get(node_id)
    if has_left(report):
        held = [one.key for one in there]
        return Observation((), (*held, *([node.key] if node else [])), ())
    if node is not None and report.gpus and _gpus(report.gpus) != node.gpus:
        puts.append(dataclasses.replace(node, gpus=_gpus(report.gpus)))
    reported: set[str] = set()
    for status in (one.status for one in report.instances):
        reported.add(status.instance_id)
        record = snapshot.instances.get(status.instance_id)
        gone = status.state == types_pb2.INSTANCE_STATE_STOPPED
        if record is None:
            if not gone:
                unknown.append(_unknown(node_id, status))
        elif record.node_id != node_id:
            continue
        elif gone and is_stopping(record):
            deletes.append(record.key)
        elif _observed(status) != record.observed:
            puts.append(_seen(record, _observed(status)))
    for record in there:
        if record.instance_id in reported:
            continue
        generation, revision = sent.get(record.instance_id, (0, 0))
        if generation != record.generation or report.applied_revision < revision:
            continue
        if is_stopping(record):
            deletes.append(record.key)
        elif record.observed.state != types_pb2.INSTANCE_STATE_PENDING:
            waiting = Observed(reason="its node does not run it (yet)", restarts=record.observed.restarts)
            puts.append(_seen(record, waiting))
    return Observation(tuple(puts), tuple(deletes), tuple(unknown))


def _seen(record: InstanceRecord, observed: Observed) -> InstanceRecord:
    ready = types_pb2.INSTANCE_STATE_READY
    served = record.served or ready in (record.observed.state, observed.state)
    return dataclasses.replace(record, observed=observed, served=served)


def _observed(status: cluster_pb2.InstanceStatus) -> Observed:
    return Observed(status.state, status.reason, status.incarnation, status.address, status.restarts)


def _unknown(node_id: str, status: cluster_pb2.InstanceStatus) -> InstanceRecord:
    return InstanceRecord(
        instance_id=status.instance_id,
        model=status.model,
        node_id=node_id,
        gpu_indexes=tuple(status.gpu_indexes),
        role=status.role or types_pb2.ROLE_MIXED,
        spec=b"",
        spec_version=status.spec_version,
        generation=status.generation,
        desired=_desired(status),
        observed=_observed(status),
        served=status.state == types_pb2.INSTANCE_STATE_READY,
        # An operator's word outlives the controller that heard it.
        batch_size=status.local.set_batch_size,
        step_token_budget=status.local.set_step_token_budget,
    )


def _desired(status: cluster_pb2.InstanceStatus) -> control_pb2.DesiredState.ValueType:
    """What must have been wanted of a worker that nobody knows."""
    asleep = status.state == types_pb2.INSTANCE_STATE_SLEEPING
    return control_pb2.DESIRED_STATE_SLEEPING if asleep else control_pb2.DESIRED_STATE_RUNNING


def _gpus(gpus: Iterable[cluster_pb2.Gpu]) -> tuple[GpuRecord, ...]:
    return tuple(
        GpuRecord(gpu.index, gpu.uuid, gpu.name, gpu.memory_bytes, gpu.healthy, gpu.reason)
        for gpu in sorted(gpus, key=lambda gpu: gpu.index)
    )
