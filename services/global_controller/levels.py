"""What each node's agent is told: every instance that it should know of. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord, Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.fleet import is_given_up
from services.global_controller.notice import Notice
from services.global_controller.registry import Level
from services.global_controller.sleep_costs import sleep_costs


class NodeIndex:
    """Node → the instances on record there, of one snapshot after the other.

    Every report of every node needs its own; looking for them among all of the cluster's would cost more than
    all else that a report does.
    """

    def __init__(self) -> None:
        self._snapshot = Snapshot()
        self._found: Mapping[str, Sequence[InstanceRecord]] = {}

    def of(self, snapshot: Snapshot) -> Mapping[str, Sequence[InstanceRecord]]:
        """The index of this snapshot; made once for all calls with the same one."""
        if snapshot is not self._snapshot:
            found: dict[str, list[InstanceRecord]] = {}
            for record in snapshot.instances.values():
                found.setdefault(record.node_id, []).append(record)
            self._snapshot, self._found = snapshot, found
        return self._found


def told(records: Iterable[InstanceRecord], notice: Notice) -> Sequence[InstanceRecord]:
    """Those instances of one node that its agent is told of, as it is told of them."""
    return [notice.as_told(record) for record in records if not is_given_up(record)]


def desired_instances(
    snapshot: Snapshot, records: Sequence[InstanceRecord], trace_parent: Callable[[str], str]
) -> list[control_pb2.DesiredInstance]:
    """What an agent is told of these instances.

    Args:
        snapshot: the state, in which their models' present specs are.
        records: the instances.
        trace_parent: W3C context of the decision that asks for an instance; "": it has none.
    """
    names, none = {record.model for record in records}, cluster_pb2.ModelSpec()
    specs = {name: snapshot.models[name].parsed_spec() for name in names if name in snapshot.models}
    return [
        desired_instance(record, specs.get(record.model, none), trace_parent(record.instance_id))
        for record in records
    ]


def level_of(snapshot: Snapshot, records: Iterable[InstanceRecord]) -> Level:
    """What tells whether a node's agent must hear of these instances again."""
    models = snapshot.models
    return tuple(
        sorted(
            (
                record.instance_id,
                record.generation,
                models[record.model].spec_version if record.model in models else 0,
            )
            for record in records
        )
    )


def desired_instance(
    record: InstanceRecord, model: cluster_pb2.ModelSpec, trace_parent: str = ""
) -> control_pb2.DesiredInstance:
    """What an agent is told of one instance.

    Args:
        record: the instance.
        model: its model's spec now.
        trace_parent: W3C context of the decision that asks for it; empty: it has none.
    """
    costs = sleep_costs(model)
    return control_pb2.DesiredInstance(
        instance_id=record.instance_id,
        generation=record.generation,
        state=record.desired,
        spec=cluster_pb2.ModelSpec.FromString(record.spec),
        spec_version=record.spec_version,
        role=record.role,
        gpu_indexes=record.gpu_indexes,
        drain_timeout_s=model.drain_timeout_s,
        local_autoscaler=model.autoscaling.local,
        batch_size=record.batch_size,
        step_token_budget=record.step_token_budget,
        trace_parent=trace_parent,
        sleep_level=costs.level,
        sleep_residual_bytes=costs.residual_bytes,
    )
