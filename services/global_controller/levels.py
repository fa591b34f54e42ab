"""What each node's agent is told: every instance that it should know of. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from chiron.internal.v1 import control_pb2
from chiron.store import InstanceRecord, Snapshot
from chiron.v1 import cluster_pb2
from services.global_controller.fleet import is_given_up
from services.global_controller.notice import Notice


def levels(snapshot: Snapshot, notice: Notice) -> Mapping[str, Sequence[InstanceRecord]]:
    """Node → the instances that its agent is told of, as it is told of them."""
    found: dict[str, list[InstanceRecord]] = defaultdict(list)
    for record in snapshot.instances.values():
        if not is_given_up(record):
            found[record.node_id].append(notice.as_told(record))
    return found


def drain_timeouts(snapshot: Snapshot) -> Mapping[str, float]:
    """Model → the time that its instances have to drain, in seconds; 0: its spec names none."""
    return {name: model.parsed_spec().drain_timeout_s for name, model in snapshot.models.items()}


def desired_instance(record: InstanceRecord, drain_timeout_s: float) -> control_pb2.DesiredInstance:
    """What an agent is told of one instance; `drain_timeout_s` 0: it uses its own."""
    return control_pb2.DesiredInstance(
        instance_id=record.instance_id,
        generation=record.generation,
        state=record.desired,
        spec=cluster_pb2.ModelSpec.FromString(record.spec),
        spec_version=record.spec_version,
        role=record.role,
        gpu_indexes=record.gpu_indexes,
        drain_timeout_s=drain_timeout_s,
    )
